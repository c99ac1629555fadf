"""The two engines that are compared, the models they are compared on, and what those comparisons share."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from programs import Failure, run

SCRIPTS = Path(__file__).resolve().parent
REPOSITORY = SCRIPTS.parents[1]


@dataclass(frozen=True)
class Model:
    """A model, its file in tests/data/reference, and how many times llama.cpp's speed accel is to reach on it."""

    name: str
    title: str
    file: str
    reference: str
    decode_goal: float
    prefill_goal: float
    batch_goal: float | None


MODELS = (
    Model(
        name="smollm2",
        title="SmolLM2 135M Q4_1",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        reference="smollm2-135m-instruct.Q4_1.json",
        decode_goal=2.0,
        prefill_goal=5.0,
        batch_goal=5.0,
    ),
    Model(
        name="gemma3",
        title="Gemma 3 270M Q4_K_M",
        file="gemma-3-270m-q4_k_m.gguf",
        reference="gemma-3-270m-q4_k_m.json",
        decode_goal=1.6,
        prefill_goal=3.0,
        batch_goal=4.0,
    ),
    Model(
        name="qwen2",
        title="Qwen2.5 0.5B Q4_K_M",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        reference="qwen2.5-coder-0.5b-instruct-q4_k_m.json",
        decode_goal=1.6,
        prefill_goal=3.0,
        batch_goal=4.0,
    ),
)

# Of random weights, for speed only; written by tests/scripts/make-large-model.
LARGE = Model(
    name="qwen2-large",
    title="Qwen2.5 1.5B's shape, Q4_K_M, random weights",
    file="qwen2.5-1.5b-random-q4_k_m.gguf",
    reference="",
    decode_goal=1.25,
    prefill_goal=2.0,
    batch_goal=None,
)


# --- the engines ------------------------------------------------------------------------------------------


def llama_programs(chosen: Path | None, jobs: int, needed: str) -> Path:
    """The directory of llama.cpp's programs, built first if they are not there."""
    if chosen is None:
        return build_llama(jobs)
    if not (chosen / needed).is_file():
        raise Failure(f"{chosen} lacks {needed}", "leave --llama-bin out, and llama.cpp is built")
    return chosen


def build_llama(jobs: int) -> Path:
    # Not through `run`: what it says on the way is for the person who waits for it.
    built = subprocess.run([SCRIPTS / "build-llama-cpp", "--jobs", str(jobs)], stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        raise Failure("llama.cpp could not be built", "see above; or name a build of it with --llama-bin")
    return Path(built.stdout.strip())


def accel_binary(path: Path) -> Path:
    if not path.is_file():
        raise Failure(f"{path} is not there", "build it: cargo build --release --bin accel; or name one with --accel")
    return path.resolve()


def require_flags(accel: Path, command: str, flags: tuple[str, ...]) -> None:
    known = set(re.findall(r"--[a-z][a-z-]*", run([accel, command, "--help"]).stdout))
    lacking = [flag for flag in flags if flag not in known]
    if lacking:
        raise Failure(f"`{accel} {command}` does not know {', '.join(lacking)}", "build accel from this tree")


def chosen_models(only: list[str] | None, directory: Path) -> list[tuple[Model, Path]]:
    """The models that are named; all real ones, where none is."""
    wanted = [model for model in (*MODELS, LARGE) if model.name in only] if only else MODELS
    pairs = [(model, directory / model.file) for model in wanted]
    for model, path in pairs:
        if not path.is_file():
            raise Failure(f"{path} is not there", how_to_get(model, directory))
    return pairs


def how_to_get(model: Model, directory: Path) -> str:
    if model is LARGE:
        return f"tests/scripts/make-large-model --models {directory}"
    return f"tests/scripts/get-models --dir {directory} {model.name}"


def models_directory() -> Path:
    """Where the models lie unless another directory is named."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ACCEL_MODELS") or cache / "accel" / "models")


# --- showing ----------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column is words, the others are figures."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def shown(value: float | None, form: str, unit: str = "") -> str:
    return "n/a" if value is None else format(value, form) + unit


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def write_json(path: Path | None, results: list[dict]) -> None:
    if path:
        path.write_text(json.dumps({"tag": "measured", "results": results}, indent=1) + "\n", "utf-8")


# --- the command line -------------------------------------------------------------------------------------


def parser_of(description: str, models: tuple[Model, ...] = MODELS) -> argparse.ArgumentParser:
    """A parser that knows what every comparison takes; `models` are those that it can compare."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).name, description=description, formatter_class=form)
    add = parser.add_argument
    binary = REPOSITORY / "target" / "release" / "accel"
    add("--accel", type=Path, metavar="PATH", default=binary, help="binary (default: target/release/accel)")
    add("--models", type=Path, metavar="DIR", default=models_directory(), help="directory (default: where get-models puts them)")
    add("--llama-bin", type=Path, metavar="DIR", help="directory of another build of llama.cpp's programs")
    add("--only", action="append", choices=[model.name for model in models], help="this model only; may be given again")
    add("--threads", type=positive, metavar="N", default=2, help="threads of either engine (default: 2)")
    add("--json", type=Path, metavar="FILE", help="write every figure there, too")
    cores = os.cpu_count() or 1
    add("--jobs", type=positive, metavar="N", default=cores, help="compilers at once, if llama.cpp is built")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"{options.json.parent} is not a directory; --json cannot write there")
    return options


def positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def exit_with(main: Callable[[], None]) -> None:
    """Runs a script to its end; a failure is told with its hint."""
    try:
        main()
    except Failure as failure:
        hint = f"\nhint: {failure.hint}" if failure.hint else ""
        sys.exit(f"{Path(sys.argv[0]).name}: {failure}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)
