"""Every bench can be run by `python -m bench`, and one that fails ends no other."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import __main__ as benches
from bench import faults

FOLDER = Path(benches.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in benches.SHARED)


@pytest.mark.parametrize("name", NAMES)
def test_main_takes_a_list_of_words(name: str) -> None:
    """Read and not imported: some need packages of the extras."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    (main,) = (d for d in tree.body if isinstance(d, ast.FunctionDef) and d.name == "main")
    assert [argument.arg for argument in main.args.args] == ["argv"]


def test_a_bench_that_fails_or_cannot_run_lets_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def load(name: str) -> SimpleNamespace:
        ran.append(name)
        if name == "bench.exact":
            raise ModuleNotFoundError("gone", name="transformers")

        def main(argv: list[str]) -> int:
            if name == "bench.handoff":
                raise RuntimeError("the server did not start")
            return len(argv)

        return SimpleNamespace(main=main)

    monkeypatch.setattr(importlib, "import_module", load)
    assert benches.main(["exact", "handoff", "start"]) == 1
    assert ran == ["bench.exact", "bench.handoff", "bench.start"]
    said = capsys.readouterr()
    assert "exact skipped: package transformers is not installed" in said.out
    assert "the server did not start" in said.err
    assert benches.main(["start"]) == 0


def test_a_loop_of_deaths_that_cannot_kill_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 failures of 10,000 says nothing if the thread that kills had ended before."""

    class Immortal:
        role, name = "decode", "d0"

        def kill(self) -> None:
            raise ProcessLookupError("it is not there")

    @contextlib.contextmanager
    def one(*_: int) -> Iterator[SimpleNamespace]:
        router = SimpleNamespace(http="127.0.0.1:1", admin="")
        status = {"replays_total": 0}
        yield SimpleNamespace(nodes={"d0": Immortal()}, router=router, settled=lambda: status)

    async def no_requests(*_: object) -> None:
        await asyncio.sleep(0.2)

    monkeypatch.setattr(faults, "workers", one)
    monkeypatch.setattr(faults, "loop", no_requests)
    monkeypatch.setattr(faults, "DEATH_PAUSE_S", 0)
    with pytest.raises(ProcessLookupError):
        faults.deaths("decode", 1, faults.Judge())
