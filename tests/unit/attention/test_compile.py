"""Libraries are compiled once, within limits, and a failure is told in the compiler's words."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dopd.attention import compile
from dopd.attention.compile import Compiled, CompileError, Kernel, compile_all

Run = Callable[..., list[Compiled]]

# A ninja that does what the build file says, with its name as $2 of `-C FOLDER -f FILE -j JOBS`.
NINJA = """#!/bin/sh
echo "$@" >> {folder}/calls
. "$4"
"""
MAKE = 'echo "[1/2] nvcc"; echo "[2/2] c++"; [ -e {library} ] || echo kernel > {library}'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Compile these build files, by the name of each library."""
    ninja = tmp_path / "ninja"
    ninja.write_text(NINJA.format(folder=tmp_path))
    ninja.chmod(0o755)

    def compiled(
        shown: list[tuple[float, str]] | None = None, limit_s: float = 60, **files: str
    ) -> list[Compiled]:
        kernels = [kernel(tmp_path, name, text) for name, text in files.items()]
        progress = (lambda share, name: None) if shown is None else lambda *at: shown.append(at)
        return list(compile_all(kernels, ninja, 3, progress, limit_s=limit_s))

    return compiled


def kernel(folder: Path, name: str, text: str) -> Kernel:
    home = folder / name
    home.mkdir(exist_ok=True)
    file, library = home / "build.ninja", home / f"{name}.so"
    file.write_text(text.format(library=library, folder=home))
    return Kernel(name, file, library, folder / f"locks/{name}.lock")


def test_what_is_there_is_not_compiled_again(run: Run, tmp_path: Path) -> None:
    shown: list[tuple[float, str]] = []
    first = run(shown, page=MAKE, norm=MAKE)
    assert [one.name for one in first] == ["page", "norm"]
    assert all(one.seconds is not None and one.num_bytes == 7 for one in first)
    assert [one for one in shown if one[0] in (0.0, 0.5, 1.0)] == [
        (0.0, "page"),
        (0.5, "norm"),
        (1.0, ""),
    ]
    assert [share for share, _ in shown] == sorted(share for share, _ in shown)
    again = run(page=MAKE, norm=MAKE)
    assert [one.seconds for one in again] == [None, None]
    folder = tmp_path / "page"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == f"-C {folder} -f {folder}/build.ninja -j 3"


def test_one_library_is_told_before_the_next_is_begun(run: Run, tmp_path: Path) -> None:
    """What was compiled before a failure stays."""
    with pytest.raises(CompileError):
        run(page=MAKE, norm="exit 1")
    assert (tmp_path / "page/page.so").exists()


def test_the_bar_follows_ninja(run: Run, tmp_path: Path) -> None:
    waits = "echo '[1/4] nvcc'; while [ ! -e {folder}/go ]; do sleep 0.05; done; " + MAKE
    shown: list[tuple[float, str]] = []

    class Seen(list[tuple[float, str]]):
        def append(self, at: tuple[float, str]) -> None:
            shown.append(at)
            if at == (0.25, "slow"):
                (tmp_path / "slow/go").touch()

    run(Seen(), slow=waits)
    assert (0.25, "slow") in shown


def test_the_compilers_first_complaint_is_told(run: Run, tmp_path: Path) -> None:
    fails = (
        "echo '[1/9] nvcc page.cu'; echo 'FAILED: page.o error.h'; echo 'nvcc -DLONG'; "
        "echo 'page.cu:3: fatal error: curand.h: No such file or directory'; "
        "echo 'other error'; echo 'ninja: build stopped'; exit 1"
    )
    with pytest.raises(CompileError) as raised:
        run(page=fails)
    assert str(raised.value) == (
        "page did not compile, ninja ended with 1: page.cu:3: fatal error: curand.h: No such file "
        f"or directory (all of it: {tmp_path}/page/dopd.log)"
    )


@pytest.mark.parametrize(
    ("does", "told"),
    [("echo killed; exit 137", "137: killed"), ("exit 2", "2: it says nothing")],
)
def test_a_failure_without_a_complaint_is_told_as_well(does: str, told: str, run: Run) -> None:
    with pytest.raises(CompileError, match=told):
        run(page=does)


def test_a_library_that_is_not_there_is_no_success(run: Run) -> None:
    with pytest.raises(CompileError, match=r"ninja did not make .*page\.so, and says it did"):
        run(page="exit 0")


@pytest.mark.parametrize("heeds", ["", "trap '' TERM; "])
def test_what_takes_too_long_is_ended(
    heeds: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile, "STOP_S", 0.2)
    hangs = heeds + "echo $$ > {folder}/pid; while :; do sleep 0.05; done"
    with pytest.raises(CompileError, match=r"page did not compile within 1 s; its log is"):
        run(limit_s=1.0, page=hangs)
    pid = int((tmp_path / "page/pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_another_process_compiles_is_left_to_it(run: Run, tmp_path: Path) -> None:
    lock = tmp_path / "locks/page.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CompileError, match=r"another process, which holds .*page\.lock"):
            run(page=MAKE)
    assert not (tmp_path / "calls").exists()
    assert run(page=MAKE)[0].seconds is not None


def test_an_interrupt_ends_the_compiler(run: Run, tmp_path: Path) -> None:
    hangs = "echo $$ > {folder}/pid; echo '[1/2] nvcc'; while :; do sleep 0.05; done"

    class Interrupted(list[tuple[float, str]]):
        def append(self, at: tuple[float, str]) -> None:
            if at == (0.5, "page"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(), page=hangs)
    pid = int((tmp_path / "page/pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
