"""Rows A8 and A10 to A14 of the matrix: workers that are ill rather than dead."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.faults import scenes
from tests.support.faults.fleet import Fleet, all_travels
from tests.support.faults.traffic import Ask, Verdict
from tests.support.faults.watch import record
from tests.support.processes import Process, ended, wait_for
from tests.support.server import ANY_PORTS, serve

# A prompt with the marker in it strikes the worker that computes the prompt.
MARKER = "#strike#"
POISON = tuple(f"please {MARKER} now".encode())


def mixed_fleet(folder: Path, count: int, *faults: str) -> Fleet:
    """Python workers that compute prompts and decode, with faults at the marker."""
    one = Fleet(folder)
    words = [word for kind in faults for word in ("--mock-fault", f"{kind}={MARKER}")]
    for index in range(count):
        one.add(f"m{index}", "mixed", *words)
    return one


@pytest.mark.timeout(120)
def test_a8_a_worker_that_dies_again_and_again_is_given_up_with_its_cause(tmp_path: Path) -> None:
    program = tmp_path / "worker.sh"
    program.write_text("#!/bin/sh\necho 'no such device: tpu9' >&2\nexit 3\n")
    program.chmod(0o755)
    words = ("serve", "--mock", "--worker-command", program, *ANY_PORTS)
    with ended(Process(tmp_path / "serve", *words)) as process:
        code = process.popen.wait(60)
    said = process.told()
    assert code == 1, said
    assert "no such device: tpu9" in said
    assert "5 times" in said


@pytest.mark.timeout(120)
def test_a8_one_that_is_given_up_leaves_the_others_alone(tmp_path: Path) -> None:
    """The decode worker falls into a loop later; the prefill worker does all the work then."""
    broken = tmp_path / "broken"
    program = tmp_path / "worker.sh"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *decode*) test -e {broken} && exit 3;; esac\n'
        'exec "$DOPD_TEST_PYTHON" -m dopd.worker "$@"\n'
    )
    program.chmod(0o755)
    env = {"DOPD_TEST_PYTHON": sys.executable}
    with serve("--mock", "--worker-command", program, env=env) as server:
        broken.touch()
        pids = {w["role"]: w["pid"] for w in server.status()["workers"]}
        os.kill(pids["decode"], 9)
        wait_for(lambda: "local workers go on" in server.process.told(), "it is given up")
        expected = mock_model.text(mock_model.answer([1, 2], 8))
        assert server.complete([1, 2], max_tokens=8)["choices"][0]["text"] == expected
        [left] = server.status()["workers"]
        assert left["pid"] == pids["prefill"]


def test_a11_a_step_that_hangs_is_seen_though_heartbeats_go_on(tmp_path: Path) -> None:
    """All that the worker had is answered elsewhere, the request that it hangs on included."""
    # Only p0 hangs on it, so that is where it has to be computed first.
    one = Fleet(tmp_path, *all_travels(tmp_path))
    try:
        one.add("p0", "prefill", "--mock-fault", f"hang={MARKER}")
        one.add("d0", "decode")
        one.begin()
        others = scenes.mixed_asks(11, 16, tokens_min=100, tokens_max=200)
        with one.ask(*others, Ask(POISON, 5), clients=17) as traffic:
            begun_s = time.monotonic()
            ejected_s = one.watch.wait("p0", lambda state: state != "ready", begun_s)
            results = traffic.finish()
        results.check(at_least=17)
        record("A11", ejected_s=ejected_s - begun_s)
        assert one.router.status()["replays_total"] > 0
        one.nodes["p0"].kill()
        one.nodes["p0"].restart()
        one.settled()
    finally:
        one.close()


def test_a12_load_moves_off_a_worker_that_is_ten_times_slower(tmp_path: Path) -> None:
    """It has as many seats as others and frees them later, so it is given fewer sequences."""
    one = Fleet(tmp_path)
    try:
        one.add("p0", "prefill", "--step-ms", "10", kind="rust")
        one.add("fast", "decode", "--step-ms", "10", kind="rust")
        one.add("slow", "decode", "--step-ms", "100", kind="rust")
        one.begin()
        with one.ask(*scenes.mixed_asks(12, 150, 20, 30), clients=16) as traffic:
            traffic.finish().check(at_least=150)
        fleet_ = one.router.status()
        steps = {w["id"]: w["steps"] for w in fleet_["workers"]}
        record("A12", steps=steps)
        # 16 clients, some 25 tokens each; balanced blindly, half of all tokens would be its own,
        # with 8 of the 16 in each of its steps.
        assert steps["slow"] * 8 < 150 * 25 / 2, steps
        one.settled()
    finally:
        one.close()


def test_a14_an_exception_for_one_row_fails_one_request(tmp_path: Path) -> None:
    one = mixed_fleet(tmp_path, 1, "raise")
    try:
        one.begin()
        pids = [node.pid for node in one.nodes.values()]
        with one.ask(*scenes.mixed_asks(14, 16), clients=16) as traffic:
            scenes.when_busy(one.nodes["m0"], seats=8)
            poison = [Ask((*POISON, k), 5) for k in range(4)]
            with one.ask(*poison, clients=4) as struck:
                found = struck.finish()
            results = traffic.finish()
        results.check(at_least=16)
        assert {code for _, code in found.errors} <= {"internal", "worker_failed"}
        assert len(found.of(Verdict.ERROR)) == 4
        assert [node.pid for node in one.nodes.values()] == pids
        assert all(node.is_running for node in one.nodes.values())
        one.settled()
    finally:
        one.close()


def test_the_checker_sees_a_wrong_token(tmp_path: Path) -> None:
    """Or none of these rows proves anything: a worker that gives another token is found out."""
    one = mixed_fleet(tmp_path, 1, "wrong")
    try:
        one.begin()
        with one.ask(Ask(POISON, 5), clients=1) as traffic:
            assert len(traffic.finish().of(Verdict.WRONG)) == 1
    finally:
        one.close()
