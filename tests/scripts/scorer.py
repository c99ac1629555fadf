"""Builds and runs `llama-cpp/score.cpp`: what llama.cpp holds likely at each token of given answers."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engines import SCRIPTS
from programs import Failure, Finished, run, say

SOURCE = SCRIPTS / "llama-cpp" / "score.cpp"
# A program that build-llama-cpp makes; it is linked with all that the scorer needs.
LINKED_ALIKE = "llama-quantize"


@dataclass(frozen=True)
class Way:
    """How llama.cpp is run: see `--attention`, `--feed` and `--kv` in the source."""

    attention: str
    feed: str
    kv: str = "f16"


@dataclass(frozen=True)
class Scores:
    """At one token of an answer: the most likely tokens, best first, and the log-probabilities asked for."""

    top: list[tuple[int, float]]
    asked: list[float]


# --- building ---------------------------------------------------------------------------------------------


def build_scorer(programs: Path) -> Path:
    """The scorer, built beside llama.cpp's programs unless the one there is newer than what it is made of."""
    build = programs.parent
    library = build / "src" / "libllama.a"
    settings = build / "CMakeCache.txt"
    for needed in (library, settings, build / "build.ninja"):
        if not needed.is_file():
            raise Failure(f"{needed} is not there", "leave --llama-bin out, and llama.cpp is built as needed here")
    scorer = programs / "accel-score"
    if scorer.is_file() and scorer.stat().st_mtime > max(SOURCE.stat().st_mtime, library.stat().st_mtime):
        return scorer
    say(f"building {scorer}")
    compile_scorer(build, settings.read_text("utf-8"), scorer)
    return scorer


def compile_scorer(build: Path, settings: str, scorer: Path) -> None:
    sources = Path(setting(settings, "CMAKE_HOME_DIRECTORY"))
    includes = [f"-I{sources / folder}" for folder in ("include", "ggml/include")]
    half_done = scorer.with_suffix(".new")
    compiler = setting(settings, "CMAKE_CXX_COMPILER")
    command: list[str | Path] = [compiler, "-std=c++17", "-O2", *includes, SOURCE, "-o", half_done]
    run(command + libraries(build))
    half_done.rename(scorer)


def setting(settings: str, name: str) -> str:
    found = re.search(rf"^{name}:\w+=(.+)$", settings, re.MULTILINE)
    if not found:
        raise Failure(f"the CMakeCache.txt of llama.cpp has no {name}", "leave --llama-bin out")
    return found[1]


def libraries(build: Path) -> list[str | Path]:
    """What llama.cpp's own programs are linked with: it differs from system to system."""
    rules = (build / "build.ninja").read_text("utf-8")
    rule = re.search(rf"^build bin/{LINKED_ALIKE}: .*\n(?:  .*\n)*?  LINK_LIBRARIES = (.*)$", rules, re.MULTILINE)
    if not rule:
        raise Failure(f"the build.ninja of llama.cpp does not link {LINKED_ALIKE}", "leave --llama-bin out")
    words = shlex.split(rule[1])
    return [build / word if (build / word).is_file() else word for word in words]


# --- running ----------------------------------------------------------------------------------------------


def score(
    scorer: Path,
    model: Path,
    completions: list[dict],
    asked: list[list[int]],
    way: Way,
    threads: int,
) -> list[Scores]:
    """Runs the completions through a model. `asked` has the tokens to tell about for each token of the answers."""
    options = ["--attention", way.attention, "--feed", way.feed, "--kv", way.kv, "--threads", str(threads)]
    with tempfile.NamedTemporaryFile("w", prefix="accel-score-", suffix=".txt", encoding="utf-8") as file:
        file.write(input_of(completions, asked))
        file.flush()
        command: list[str | Path] = [scorer, model, file.name, *options]
        scores = scores_of(run(command))
    if len(scores) != len(asked):
        raise Failure(f"{scorer.name} told about {len(scores)} tokens of {len(asked)}")
    return scores


def input_of(completions: list[dict], asked: list[list[int]]) -> str:
    lines = []
    left = iter(asked)
    for completion in completions:
        lines.append(["prompt", *completion["prompt_tokens"]])
        for token in completion["tokens"]:
            lines.append(["at", token, *next(left)])
    return "".join(" ".join(str(word) for word in line) + "\n" for line in lines)


def scores_of(finished: Finished) -> list[Scores]:
    try:
        lines = [json.loads(line) for line in finished.stdout.splitlines()]
        return [Scores([(token, logprob) for token, logprob in line["top"]], line["asked"]) for line in lines]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise Failure(f"the scorer wrote something else than scores: {error}") from error
