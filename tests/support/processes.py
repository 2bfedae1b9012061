"""Real processes for tests: start, wait for their promise, end by pid, nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DOPD = [sys.executable, "-m", "dopd"]
POLL_S = 0.02
# Waits end when what they wait for is there; these only bound a failure. Generous: CI has 2 cores.
START_TIMEOUT_S = 50.0
STOP_TIMEOUT_S = 30.0
WAIT_TIMEOUT_S = 30.0


def wait_for(look: Callable[[], T | None], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> T:
    """The first value of `look` that is neither None nor False."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = look()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def run(
    *words: str | Path,
    timeout_s: float = WAIT_TIMEOUT_S,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `dopd WORDS...` to its end."""
    return subprocess.run(
        [*DOPD, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        input=stdin or "",
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"} | (env or {}),
        check=False,
    )


def children(pid: int) -> set[int]:
    """Every living descendant of `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int(_stat(entry)[1])
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_alive(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    try:
        return _stat(Path(f"/proc/{pid}"))[0] != "Z"
    except OSError:
        return False


def _stat(entry: Path) -> list[str]:
    """The fields after the command's name: state, parent, ..."""
    return (entry / "stat").read_text().rsplit(")", 1)[1].split()


class Process:
    """One `dopd ...` whose output goes to a file, ended with everything below it.

    `program` runs another program in its place.
    """

    def __init__(
        self,
        folder: Path,
        *words: str | Path,
        env: dict[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "stderr.txt"
        self.out = folder / "stdout.txt"
        self.scratch = folder / "tmp"
        self.scratch.mkdir()
        with self.log.open("wb") as err, self.out.open("wb") as out:
            self.popen = subprocess.Popen(
                [*([str(program)] if program else DOPD), *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=os.environ
                | {"TMPDIR": str(self.scratch), "NO_COLOR": "1", "COLUMNS": "100"}
                | (env or {}),
                start_new_session=True,
            )
        self.pid = self.popen.pid
        self._family: set[int] = set()

    def wait_until(self, look: Callable[[], T | None], what: str, timeout_s: float) -> T:
        """As `wait_for`, but a process that ended ends the wait with its output."""

        def alive_look() -> T | None:
            value = look()
            if value is None and self.popen.poll() is not None:
                raise AssertionError(
                    f"ended with {self.popen.returncode} before {what}:\n{self.told()}"
                )
            return value

        try:
            return wait_for(alive_look, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def told(self) -> str:
        """Everything that it wrote."""
        return self.out.read_text() + self.log.read_text()

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Signal the process alone, wait for it; returns its exit code. Nothing may be left."""
        self._family |= children(self.pid)
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        try:
            code = self.popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {how.name}:\n{self.told()}") from None
        self.assert_nothing_left()
        return code

    def assert_nothing_left(self) -> None:
        """No child process, no socket or other file in the folder for temporary files."""
        wait_for(
            lambda: not any(map(is_alive, self._family)), f"children of {self.pid} are gone", 10
        )
        left = [str(path) for path in self.scratch.rglob("*")]
        assert not left, f"files left: {left}"

    def kill(self) -> None:
        """End it and its children at once; for the end of a test that failed."""
        for pid in children(self.pid) | self._family | {self.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def ended(process: Process) -> Iterator[Process]:
    """Whatever happens in the block, the process is gone after it."""
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.kill()
        if process.popen.stdin is not None:
            process.popen.stdin.close()
