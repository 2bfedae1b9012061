"""The talk ends when its user ends it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dopd.cli import app, console

Typed = type[BaseException]


def type_(monkeypatch: pytest.MonkeyPatch, what: list[Typed], *, on_terminal: bool) -> None:
    """Let `input` raise these, one after the other."""
    keys: Iterator[Typed] = iter(what)

    def typed(_: str) -> str:
        raise next(keys)

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: on_terminal)


def test_ctrl_c_at_the_prompt_keeps_the_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    type_(monkeypatch, [KeyboardInterrupt, KeyboardInterrupt, EOFError], on_terminal=True)
    assert app.run(["chat", "--model", "m"]) == console.OK


def test_ctrl_c_ends_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    type_(monkeypatch, [KeyboardInterrupt], on_terminal=False)
    assert app.run(["chat", "--model", "m"]) == console.INTERRUPTED
