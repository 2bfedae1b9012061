"""Runs from Python: arrays in and out, orders of one's own, figures against NumPy's."""

from __future__ import annotations

import gzip
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dopd._router", reason="the extension is not built")

from dopd import sim
from dopd.sim.trace import TraceError

LOAD = "poisson:rate=60,prompt=1500~1.0,output=100~0.6,seconds=30,tenants=3"


@pytest.fixture(scope="module")
def trace() -> sim.Trace:
    return sim.load(LOAD, seed=3)


@pytest.fixture(scope="module")
def result(trace: sim.Trace) -> sim.Result:
    return sim.simulate(trace, policy="static-4:4", prefix_cache=False)


def test_figures_are_those_of_numpy(trace: sim.Trace, result: sim.Result) -> None:
    figures, ttft, tpot = result.figures, result.ttft_s * 1e3, result.tpot_s * 1e3
    for found, values in ((figures["ttft_ms"], ttft), (figures["tpot_ms"], tpot)):
        values = values[~np.isnan(values)]
        for name, part in (("p50", 50), ("p90", 90), ("p99", 99)):
            assert found[name] == pytest.approx(np.percentile(values, part), rel=1e-9)
        assert found["mean"] == pytest.approx(values.mean())
    target = result.columns["ttft_target_us"] / 1e3
    is_good = (ttft <= target) & (np.isnan(tpot) | (tpot <= 30))
    is_good &= result.columns["is_finished"] == 1
    assert result.attainment == pytest.approx(is_good.mean(), abs=1 / len(trace))
    order = np.argsort(-trace.prompt_tokens, kind="stable")[: -(-len(trace) // 10)]
    long = figures["attainment"]["longest_tenth"]
    assert long == pytest.approx(is_good[order].mean(), abs=1 / len(order))
    assert sum(figures["utilisation"].values()) == pytest.approx(1)
    assert sum(one["requests"] for one in figures["tenants"]) == len(trace)
    assert {one["tenant"] for one in figures["tenants"]} == {1, 2, 3}


def test_the_same_arguments_give_the_same_result(trace: sim.Trace, result: sim.Result) -> None:
    again = sim.simulate(trace, policy="static-4:4")
    assert again.figures == result.figures
    assert np.array_equal(again.columns["end_us"], result.columns["end_us"])


def test_arrays_lists_and_files_are_the_same_trace(trace: sim.Trace, tmp_path: Path) -> None:
    columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens)
    of_arrays = sim.Trace.of(*columns)
    of_lists = sim.Trace.of(*(column.tolist() for column in columns))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
        f"{at:.6f},{prompt},{output}\n" for at, prompt, output in rows
    )
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    of_file = sim.load(tmp_path / "t.csv.gz")
    for other in (of_arrays, of_lists, of_file):
        assert np.array_equal(other.arrival_s, trace.arrival_s)
        assert np.array_equal(other.prompt_tokens, trace.prompt_tokens)


def test_scaling_keeps_lengths_and_drift() -> None:
    drift = sim.load("poisson:rate=20,prompt=100..4000,output=10,seconds=400")
    more = drift.scaled(3.5, seed=2)
    assert len(more) == pytest.approx(3.5 * len(drift), rel=0.03)
    for half in (0, 200):
        window = [(t.arrival_s >= half) & (t.arrival_s < half + 200) for t in (drift, more)]
        means = [t.prompt_tokens[w].mean() for t, w in zip((drift, more), window, strict=True)]
        assert means[1] == pytest.approx(means[0], rel=0.03)
    assert np.array_equal(drift.scaled(1.0).arrival_s, drift.arrival_s)


def test_an_order_in_python_is_the_built_in_one(trace: sim.Trace) -> None:
    load = trace.scaled(2.2)
    rules = {"fair_ratio": 0, "share_tenants": False}
    aged = sim.simulate(load, policy="static-4:4", rules=rules)

    def order(request: sim.Request, now: float) -> float:
        return now + 10 * request.prefill_s

    mine = sim.simulate(load, policy="static-4:4", rules=rules | {"order": "fcfs"}, order=order)
    fcfs = sim.simulate(load, policy="static-4:4", rules=rules | {"order": "fcfs"})
    assert mine.attainment == pytest.approx(aged.attainment, abs=0.01)
    assert abs(mine.attainment - fcfs.attainment) > 0.01
    with pytest.raises(sim.SimulationError, match="gave 'soon', must be seconds"):
        sim.simulate(trace, order=lambda *_: "soon")  # type: ignore[arg-type,return-value]


def test_the_interpreter_is_free_while_it_runs(trace: sim.Trace) -> None:
    load, ticks, is_over = trace.scaled(8), [], threading.Event()

    def tick() -> None:
        while not is_over.wait(0.001):
            ticks.append(time.perf_counter())

    other = threading.Thread(target=tick)
    other.start()
    start = time.perf_counter()
    found = sim.simulate(load)
    end = time.perf_counter()
    is_over.set()
    other.join()
    # The lock is free all the time: the other thread ticks in the middle of the run, too.
    assert found.wall_s > 0.05
    edge = 0.2 * (end - start)
    middle = [at for at in ticks if start + edge < at < end - edge]
    assert len(middle) > 3


def test_what_progress_raises_ends_the_run(trace: sim.Trace) -> None:
    told = []

    def stop(ended: int, requests: int) -> None:
        told.append((ended, requests))
        raise RuntimeError("enough")

    load = trace.scaled(30)
    with pytest.raises(RuntimeError, match="enough"):
        sim.simulate(load, progress=stop)
    assert told[0][1] == len(load)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"policy": "best"}, 'no policy "best"; there are dopd'),
        ({"workers": 0}, "workers is 0, must be 1 to 4096"),
        ({"rules": {"gat": 1}}, "unknown field `gat`"),
        ({"slo_ttft_ms": -1.0}, "slo_ttft_ms is -1"),
        ({"slo_ttft_ms": float("nan")}, "slo_ttft_ms is nan: "),
        ({"rules": {"fair_ratio": float("inf")}}, "rules is {'fair_ratio': inf}: "),
        ({"workers": -1}, '"workers": -1: invalid value: integer `-1`, expected u32'),
        ({"faults": [{"kind": "death"}]}, '"kind": "death": unknown variant'),
        ({"timings": "none.json"}, "timings none.json cannot be read: no such file"),
    ],
)
def test_what_cannot_run_is_said(trace: sim.Trace, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(sim.SimulationError, match=None) as caught:
        sim.simulate(trace, **wrong)  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert " line " not in str(caught.value)


def test_bad_traces_are_told_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,x\n")
    with pytest.raises(TraceError, match=r't.csv:2:5: output_tokens is "x", expected'):
        sim.load(file)
    with pytest.raises(TraceError, match=r"none.csv cannot be read: no such file"):
        sim.load(tmp_path / "none.csv")
    with pytest.raises(TraceError, match=r"column 14: \"x\", expected rate as a number"):
        sim.load("poisson:rate=x,prompt=1,output=1")
    with pytest.raises(TraceError, match=r"prompt_tokens\[1\] is 0, must be 1 to"):
        sim.Trace.of([0, 1], [1, 0], [1, 1])
    with pytest.raises(TraceError, match="the columns differ in length"):
        sim.Trace.of([0, 1], [1], [1, 1])
    with pytest.raises(TraceError, match="arrays: arrival_s is empty, must have a value"):
        sim.Trace.of([], [], [])
    with pytest.raises(TraceError, match="output_tokens is empty"):
        sim.Trace.of([0], [1], [])
    with pytest.raises(TraceError, match="arrival_s must be numbers: "):
        sim.Trace.of(["a"], [1], [1])  # type: ignore[list-item]
    for seconds in (-1, float("nan")):
        with pytest.raises(TraceError, match=f"the first {seconds} seconds: must be a number"):
            sim.Trace.of([0], [1], [1]).first(seconds)
    with pytest.raises(TraceError, match="must be whole numbers"):
        sim.Trace.of([0], [1.5], [1])  # type: ignore[list-item]


def test_every_policy_of_the_list_runs(trace: sim.Trace) -> None:
    load = trace.first(3)
    for name in sim.policies():
        name = name.replace("NAME", "static-3:5").replace("P:D", "3:5").replace("RULE", "gate")
        found = sim.simulate(load, policy=name.replace("-K", "-3").replace("-N", "-512"))
        counts = found.figures["counts"]
        assert counts["finished"] + counts["refused"] + counts["unfinished"] == len(load)
        assert counts["unfinished"] == 0
