"""The mock engine's step time: what the cost model says, less what the step took by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import dopd
from dopd.engine.mock import MockEngine
from dopd.errors import ConfigError
from dopd.types import Row, SamplingParams


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A cost model of 50 ms a step that notes what it is asked."""
    calls: list[tuple[Any, ...]] = []

    def step_time(*arguments: Any) -> int:
        calls.append(arguments)
        return 50_000

    def timings_json(name: str) -> str:
        if name == "slow":
            return '{"name": "slow"}'
        raise ValueError(f"timings {name!r} are unknown")

    router = SimpleNamespace(step_time=step_time, timings_json=timings_json)
    monkeypatch.setattr(dopd, "_router", router, raising=False)
    return calls


def rows() -> list[Row]:
    """Two that decode with 21 and 31 tokens of context, and a chunk of 5 after 16."""
    greedy = SamplingParams(temperature=0.0)
    return [
        Row(1, [65], 20, [0, 1], greedy, 3),
        Row(2, [66], 30, [2, 3], greedy, 1),
        Row(3, [1, 2, 3, 4, 5], 16, [4, 5], None, 0),
    ]


def test_a_step_sleeps_what_the_cost_model_asks(asked: list[tuple[Any, ...]]) -> None:
    slept: list[float] = []
    engine = MockEngine(8, "slow", sleep=slept.append)
    assert engine.timings_json == '{"name": "slow"}'
    engine.step(rows())
    assert asked == [("slow", [(5, 16)], 2, 52)]
    assert 0 < slept[0] <= 0.05


@pytest.mark.usefixtures("asked")
def test_unknown_timings_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="mock timings: timings 'nope' are unknown"):
        MockEngine(8, "nope")


def test_instant_asks_nobody(asked: list[tuple[Any, ...]]) -> None:
    slept: list[float] = []
    MockEngine(8, "instant", sleep=slept.append).step(rows())
    assert asked == []
    assert slept == []
