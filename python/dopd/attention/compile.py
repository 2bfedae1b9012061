"""Run the compiler over FlashInfer's kernels: one library after another. Called by `dopd kernels`.

Knows build files of ninja and nothing of what is in them. What is there and up to date is left as
it is, so that a run which was broken off goes on where it ended.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dopd.errors import DopdError

# The slowest library that anybody saw took seven minutes, on two busy cores.
LIBRARY_S = 1800.0
POLL_S = 0.2
STOP_S = 5.0
SHOWN_CHARS = 600
STATUS = re.compile(r"^\[(\d+)/(\d+)\]", re.MULTILINE)
# ninja tells the whole command first, which is long and tells nothing.
COMPLAINT = re.compile(r"^(?!FAILED:).*\b(?:error|not found|No such file)\b.*$", re.MULTILINE)

# Called with the share that is done, 0.0 to 1.0, and the library at hand.
Progress = Callable[[float, str], None]


class CompileError(DopdError):
    """A library did not compile."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One library to be: `build_file` is ninja's, `lock` is held by whoever compiles it."""

    name: str
    build_file: Path
    library: Path
    lock: Path


@dataclass(frozen=True, slots=True)
class Compiled:
    """One library that is there. seconds: None if it was there before."""

    name: str
    library: Path
    num_bytes: int
    seconds: float | None


def compile_all(
    kernels: Sequence[Kernel],
    ninja: Path,
    jobs: int,
    progress: Progress,
    *,
    limit_s: float = LIBRARY_S,
) -> Iterator[Compiled]:
    """Each library, as soon as it is there. jobs: processes at a time. Raises CompileError.

    limit_s: for one library; what runs longer is ended.
    """
    for index, kernel in enumerate(kernels):

        def show(share: float, index: int = index, name: str = kernel.name) -> None:
            progress((index + share) / len(kernels), name)

        show(0.0)
        before = _written_at(kernel.library)
        begun = time.monotonic()
        with _alone(kernel):
            _build(kernel, ninja, jobs, limit_s, show)
        if not kernel.library.exists():
            raise CompileError(f"ninja did not make {kernel.library}, and says it did")
        is_new = _written_at(kernel.library) != before
        seconds = time.monotonic() - begun if is_new else None
        yield Compiled(kernel.name, kernel.library, kernel.library.stat().st_size, seconds)
    progress(1.0, "")


def _written_at(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


@contextmanager
def _alone(kernel: Kernel) -> Iterator[None]:
    """Hold the lock that FlashInfer holds when it compiles this at its first use."""
    kernel.lock.parent.mkdir(parents=True, exist_ok=True)
    with kernel.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CompileError(
                f"{kernel.name} is being compiled by another process, which holds {kernel.lock}: "
                "run this again when it is done"
            ) from error
        yield


def _build(
    kernel: Kernel, ninja: Path, jobs: int, limit_s: float, show: Callable[[float], None]
) -> None:
    folder = kernel.build_file.parent
    log = folder / "dopd.log"
    command = [str(ninja), "-C", str(folder), "-f", str(kernel.build_file), "-j", str(jobs)]
    deadline = time.monotonic() + limit_s
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            while (code := _wait(process, POLL_S)) is None:
                show(_share(log))
                if time.monotonic() > deadline:
                    raise CompileError(
                        f"{kernel.name} did not compile within {limit_s:.0f} s; its log is {log}"
                    )
        finally:
            _end(process)
    if code != 0:
        raise CompileError(
            f"{kernel.name} did not compile, ninja ended with {code}: {_complaint(log)} "
            f"(all of it: {log})"
        )


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End ninja if it runs, with every compiler that it started."""
    if process.poll() is not None:
        return
    # ninja ends its children at this, and removes what they have half written.
    os.killpg(process.pid, signal.SIGTERM)
    if _wait(process, STOP_S) is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _share(log: Path) -> float:
    """How far ninja says it is."""
    told = STATUS.findall(log.read_text(errors="replace"))
    return int(told[-1][0]) / max(1, int(told[-1][1])) if told else 0.0


def _complaint(log: Path) -> str:
    """The compiler's first complaint, or the last line if there is none."""
    text = log.read_text(errors="replace")
    found = COMPLAINT.search(text)
    lines = [found[0]] if found else text.splitlines()[-1:]
    return "".join(lines).strip()[:SHOWN_CHARS] or "it says nothing"
