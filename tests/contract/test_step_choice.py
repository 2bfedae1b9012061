"""What Python's batcher chooses, believes and sees of slack, against the vectors of the Rust code
(`router/core/tests/step/vectors.rs` writes them)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dopd.engine.timings import Timings
from dopd.sched.belief import Belief
from dopd.sched.choice import DECODE, StepChoice, StepView, choose
from dopd.sched.residents import Residents
from dopd.types import StepMode, StepPolicy, StepWork

VECTORS = json.loads((Path(__file__).parent / "step_vectors.json").read_text())
TIMINGS = {one["name"]: Timings.from_json(json.dumps(one)) for one in VECTORS["timings"]}
IN_US = ("tpot", "pause_max", "pause_min", "idle_slice_max")


def policy_of(found: dict[str, Any]) -> StepPolicy:
    fields = {f"{key}_us" if key in IN_US else key: value for key, value in found.items()}
    return StepPolicy(**{**fields, "mode": StepMode(found["mode"])})


def member(tpot_us: int, context: int = 0) -> Any:
    """As much of a sequence as its slack depends on."""
    return Name(tpot_us=tpot_us, computed=context)


class Name(SimpleNamespace):
    """Told apart by identity."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def said(choice: StepChoice) -> object:
    if choice.prompt_tokens:
        return {"mixed" if choice.is_decoding else "prefill": choice.prompt_tokens}
    return "decode" if choice.is_decoding else "idle"


@pytest.mark.parametrize("number", range(len(VECTORS["choices"])))
def test_the_choice_is_the_routers(number: int) -> None:
    case = VECTORS["choices"][number]
    policy, timings, seen = policy_of(case["policy"]), TIMINGS[case["timings"]], case["view"]
    belief = Belief(policy)
    for _ in range(case["pauses"]):
        belief.began(StepChoice(False, 1), has_decodes=True, has_prompts=True)
    for _ in range(case["decodes"]):
        belief.began(DECODE, has_decodes=True, has_prompts=True)
    residents = Residents(policy)
    for tpot_us, first_us, tokens in seen["residents"]:
        residents.join(member(tpot_us), seen["last_us"], first_us, tokens)
    decode = StepWork(0, 0, seen["decode_seqs"], seen["decode_context"])
    prompts = [(todo, done) for todo, done in seen["prompts"]]
    view = StepView(
        seen["now_us"], seen["is_decode"], seen["tokens_max"], residents, decode, prompts
    )
    decode_us = timings.plain_us(decode)
    whole = decode.with_prompts(prompts, 500)
    plain_us = timings.plain_us(whole)
    found = {
        "choice": said(choose(policy, belief, view, timings.plain_us)),
        "slack_us": residents.slack_us(seen["now_us"], decode_us, policy.slack_quantile),
        "decode_us": decode_us,
        "plain_500_us": plain_us,
        "mixed_500_us": belief.expected_us(plain_us, is_mixed=whole.is_mixed),
    }
    assert found == case["expected"]


@pytest.mark.parametrize("case", VECTORS["beliefs"], ids=lambda case: f"from {case['start']}")
def test_a_belief_moves_as_the_routers(case: dict[str, Any]) -> None:
    belief = Belief(StepPolicy(mixed_penalty_start=case["start"]))
    for plain_us, took_us, penalty, permille in case["steps"]:
        belief.measured(plain_us, took_us)
        assert (belief.penalty, belief.permille) == (penalty, permille)


def test_slack_follows_joins_leaves_and_steps_as_the_routers() -> None:
    found = VECTORS["residents"]
    residents, here = Residents(policy_of(found["policy"])), {}
    for op in found["ops"]:
        now_us, what = op["now_us"], op["op"]
        if what == "stepped":
            residents.stepped(now_us)
        elif "join" in what:
            name, tpot_us, first_us, tokens = what["join"]
            here[name] = member(tpot_us)
            residents.join(here[name], now_us, first_us, tokens)
        else:
            residents.leave(here.pop(what["leave"]))
        slacks = [residents.slack_us(now_us, found["decode_us"], q) for q in (0.0, 0.05, 0.5, 1.0)]
        assert len(residents) == op["count"]
        assert slacks == op["slack_us"]
        assert residents.gap_us(now_us) == op["gap_us"]
        if op["tpot_min_us"] is not None:
            assert residents.tpot_us(found["decode_us"]) == op["tpot_min_us"]


def test_the_context_that_all_read_together_is_that_of_each() -> None:
    residents, contexts = Residents(StepPolicy()), {}
    for step in range(40):
        if step % 3 != 2:
            one = member(0, 10 * step)
            contexts[one] = one.computed + 1
            residents.join(one, step)
        elif contexts:
            one = next(iter(contexts))
            residents.leave(one)
            del contexts[one]
        assert residents.context_sum == sum(contexts.values())
        residents.stepped(step)
        contexts = {one: context + 1 for one, context in contexts.items()}
