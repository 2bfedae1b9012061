"""The brain driven by hand: the same as the one that serves."""

from __future__ import annotations

import pytest

pytest.importorskip("dopd._router", reason="the extension is not built")

from dopd.brain import Brain, BrainError, arrived, joined, reported


def test_a_request_gets_a_seat_and_its_end_frees_it() -> None:
    brain = Brain({"policy": {"order": "fcfs"}})
    assert brain.settings["policy"]["order"] == "fcfs"
    assert brain.handle(0, joined(1, "a", "mixed")) == []
    (opened,) = brain.handle(5, arrived(7, prompt_tokens=100, max_tokens=10))
    assert opened["action"] == "open"
    assert opened["sequence"] == {"request": 7, "choice": 0}
    assert opened["seat"]["session"] == 1
    slot = opened["seat"]["slot"]
    told = reported(
        1, "mixed", step=1, pages_free=25_000, tokens=[(slot, 10)], closed={slot: "length"}
    )
    assert all(action["action"] != "reject" for action in brain.handle(9_000, told))


def test_without_a_worker_a_request_waits_and_is_given_up() -> None:
    brain = Brain({"no_worker_wait": 1_000_000})
    assert brain.handle(0, arrived(1, prompt_tokens=10, max_tokens=5)) == []
    wake = brain.next_wake()
    assert wake is not None
    actions = brain.handle(max(wake, 1_000_000), {"event": "woke"})
    assert [(one["action"], one["why"]) for one in actions] == [("reject", "no_worker")]


def test_the_same_events_give_the_same_actions() -> None:
    events = [joined(1, "p", "prefill"), joined(2, "d", "decode")]
    events += [arrived(at, prompt_tokens=100 * at, max_tokens=9) for at in range(1, 20)]

    def play() -> list[object]:
        brain = Brain()
        return [brain.handle(1_000 * at, event) for at, event in enumerate(events)]

    assert play() == play()


@pytest.mark.parametrize(
    ("config", "told"), [({"seeed": 1}, "unknown field `seeed`"), ({"seed": -1}, "invalid value")]
)
def test_a_wrong_configuration_is_told(config: dict[str, int], told: str) -> None:
    with pytest.raises(BrainError, match=told):
        Brain(config)


def test_wrong_timings_are_told() -> None:
    with pytest.raises(BrainError, match='"none" are neither built in'):
        joined(1, "a", "mixed", timings="none")


def test_a_wrong_event_is_told() -> None:
    with pytest.raises(BrainError, match="event 'eaten' at 3: unknown variant `eaten`"):
        Brain().handle(3, {"event": "eaten"})
    with pytest.raises(BrainError, match=r"out of range|can't convert negative|overflow"):
        Brain().handle(-1, {"event": "woke"})
