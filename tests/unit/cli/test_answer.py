"""An answer on the terminal: its text is shown as text, and its figures add up."""

from __future__ import annotations

import pytest

from dopd.cli import answer
from dopd.cli.answer import Answer

EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "a"}}]},
    {"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"completion_tokens": 3}},
]


def test_text_finish_and_usage_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    found = Answer()
    found.follow(EVENTS)
    assert capsys.readouterr().out == found.text == "ab"
    assert found.finish_reason == "length"
    assert found.usage == {"completion_tokens": 3}


def test_speed_counts_tokens_after_the_first() -> None:
    found = Answer(first_s=0.5, last_s=2.5, usage={"completion_tokens": 5})
    assert found.timings() == {"ttft_ms": 500.0, "tokens_per_s": 2.0}
    assert found.summary() == "5 tokens, 2.0 tokens/s, first after 500 ms"


def test_an_answer_without_a_token_has_no_speed() -> None:
    assert Answer().timings() == {"ttft_ms": None, "tokens_per_s": None}
    assert Answer().summary() == ""


def test_a_terminal_does_not_obey_what_a_model_writes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"choices": [{"text": "\x1b[2J\x9b1mé\n\t"}]}
    Answer(is_shown=True).follow([event])
    assert capsys.readouterr().out == "\x1b[2J\x9b1mé\n\t"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    Answer(is_shown=True).follow([event])
    assert capsys.readouterr().out == "\\x1b[2J\\x9b1mé\n\t"


def test_nothing_faint_is_told_to_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    answer.note_faintly("12 tokens")
    assert capsys.readouterr().err == ""


def test_what_other_servers_leave_empty_is_nothing() -> None:
    found = Answer(is_shown=False)
    found.follow([{"choices": None}, {"choices": [{"delta": None}, {"text": "a"}]}])
    assert found.text == "a"
