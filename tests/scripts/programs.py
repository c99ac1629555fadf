"""Runs other programs for the benchmarks, and tells what each one took of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

RUN_LIMIT_S = 3600


class Failure(Exception):
    """What went wrong, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Finished:
    stdout: str
    stderr: str
    peak_rss_mib: float
    others: float | None


def run(command: list[str | Path], limit_s: float = RUN_LIMIT_S) -> Finished:
    """Runs a program to its end. `wait4` because only it tells the peak memory of this one child."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            raise Failure(f"cannot start {words[0]}: {error.strerror}") from error
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        before = processor_seconds()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        others = share_of_others(before, processor_seconds(), usage.ru_utime + usage.ru_stime)
        finished = Finished(text_of(out), text_of(err), peak_mib(usage.ru_maxrss), others)
    if process.returncode != 0:
        said = (finished.stderr.strip() or finished.stdout.strip())[-2000:]
        raise Failure(f"`{' '.join(words)}` ended with {process.returncode}:\n{said}")
    return finished


def text_of(file) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def peak_mib(ru_maxrss: int) -> float:
    # Linux counts kibibytes, macOS bytes.
    return ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def processor_seconds() -> tuple[float, float] | None:
    """Seconds that the processors could have worked and did work since the system started; Linux tells."""
    try:
        words = Path("/proc/stat").read_text().split(maxsplit=9)
    except OSError:
        return None
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in words[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks), sum(ticks) - idle


def share_of_others(before: tuple | None, after: tuple | None, own: float) -> float | None:
    """The part of all processors' time that went to other programs meanwhile."""
    if before is None or after is None:
        return None
    could, did = after[0] - before[0], after[1] - before[1]
    return max(0.0, did - own) / could if could > 0 else None


def json_of(finished: Finished, program: str):
    try:
        return json.loads(finished.stdout)
    except json.JSONDecodeError as error:
        raise Failure(f"{program} did not write JSON: {finished.stdout[:200]!r}") from error


def say(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
