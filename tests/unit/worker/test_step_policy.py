"""The router's wishes for steps, as they come over the wire."""

from __future__ import annotations

import dataclasses

import pytest

from dopd import wire
from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.errors import ProtocolError
from dopd.types import StepMode, StepPolicy, Welcome


def welcomed(**fields: object) -> StepPolicy:
    welcome = pb.Welcome(
        session=1,
        lease_ms=3000,
        report_interval_ms=200,
        kv_check=pb.KV_CHECK_OFF,
        kv_scrub=pb.KV_SCRUB_NEVER,
        **fields,
    )
    found = wire.response(pb.AttachResponse(welcome=welcome))
    assert isinstance(found, Welcome)
    return found.step_policy


def test_a_router_that_wants_nothing_wants_steps_filled() -> None:
    assert welcomed() == StepPolicy(StepMode.FILL)


@pytest.mark.parametrize("mode", StepMode)
def test_every_constant_of_the_choice_arrives(mode: StepMode) -> None:
    # Ratios that a float holds exactly.
    told = StepPolicy(mode, 300, 40_000, 0.75, 0.5, 70_000, 20_000, 0.125, 0.25, 9, 30_000)
    fields = dataclasses.asdict(told) | {"mode": pb.StepMode.Value(f"STEP_MODE_{mode.name}")}
    assert welcomed(step_policy=pb.StepPolicy(**fields)) == told


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"mode": pb.STEP_MODE_FILL}, "without a target per token"),
        ({"mode": pb.STEP_MODE_UNSPECIFIED, "tpot_us": 1}, "unknown step mode 0"),
    ],
)
def test_half_a_policy_is_none(fields: dict[str, int], error: str) -> None:
    with pytest.raises(ProtocolError, match=error):
        welcomed(step_policy=pb.StepPolicy(**fields))


def test_the_target_of_a_sequence_arrives() -> None:
    compute = pb.Compute(prompt=[1])
    opened = wire.command(pb.Command(open=pb.Open(slot=1, slo_tpot_us=25_000, compute=compute)))
    assert getattr(opened, "slo_tpot_us", None) == 25_000
