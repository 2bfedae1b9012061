"""Is the simulator right? The same arrivals through it and through a real router and mock workers.

Real processes, real sockets: `dopd serve --mock` with workers that sleep by the calibration which
the simulator computes with, here one that is `SLOW` times slower than `h100-8b`, so that what a
busy machine adds to each step is small beside it. TTFT, TPOT and goodput of both side by side, with
the error of the simulator; the aim is 10 %. Client, router and workers share this machine: its load
is in the conditions.

Against the runs of vLLM in `shared/data/perf` only the queue can be checked: see `vllm`.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from bench.common import finish, serving
from bench.sim_cells import data
from dopd import sim
from dopd.cli import console

AIM = 0.10
SLOW = 6.0
SEED = 7
# (name, seconds, arrivals, prefill workers, decode workers): light, half loaded, bursts, long
# prompts, of which a minute has too few for a P90.
SCENES = (
    ("light", 60, "poisson:rate=0.8,prompt=512,output=48", 1, 1),
    ("half", 60, "poisson:rate=1.7,prompt=1024~0.6,output=64~0.5", 1, 1),
    ("bursts", 60, "gamma:rate=1.5,cv=3,prompt=512~0.8,output=48~0.5", 1, 1),
    ("long", 240, "poisson:rate=0.6,prompt=4000~0.5,output=48", 1, 1),
    ("four", 60, "poisson:rate=3,prompt=1024~0.6,output=64~0.5", 2, 2),
)
SLO_TTFT_MS, SLO_TPOT_MS = 500.0 * SLOW, 30.0 * SLOW
# The same limits on both sides.
NUM_SEQS_MAX, BATCH_TOKENS_MAX = 256, 8192
# What does not stretch with the calibration.
NOT_TIMES = ("name", "mixed_penalty_ratio", "handoff_bytes_per_s")
# (TTFT, TPOT) in ms; NaN for an answer of one token.
Pairs = list[tuple[float, float]]
FIGURES = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "good_per_s")


def main(argv: list[str]) -> int:
    """Play each scene on both and print the table of errors."""
    scenes = SCENES[:2] if "--quick" in argv else SCENES
    rows = [scene(*one) for one in scenes]
    print(table(rows))
    result: dict[str, Any] = {"aim": AIM, "scenes": rows}
    result["is_met"] = all(row["error_max"] <= AIM for row in rows)
    if (data() / "perf").is_dir():
        result["vllm"] = [vllm(name) for name in ("llama-3.1-8b", "qwen3-32b")]
        print(json.dumps(result["vllm"]))
    else:
        print(f"vllm skipped: no {data() / 'perf'}; set DOPD_DATA")
    return finish("sim_instrument", {"simulated": True, **result})


def scene(name: str, seconds: int, spec: str, prefill: int, decode: int) -> dict[str, Any]:
    """One load on both."""
    trace = sim.load(f"{spec},seconds={seconds}", seed=SEED)
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as folder:
        timings = slower(Path(folder) / "timings.json")
        pairs, kv_tokens = real(trace, timings, prefill, decode)
        seen = summary(pairs, seconds)
        told = summary(simulated(trace, timings, prefill, decode, kv_tokens), seconds)
    errors = {one: told[one] / seen[one] - 1 if seen[one] else 0.0 for one in FIGURES}
    return {
        "scene": name,
        "seconds": seconds,
        "requests": len(trace),
        "simulated": told,
        "real": seen,
        "errors": {one: round(error, 4) for one, error in errors.items()},
        "error_max": round(max(map(abs, errors.values())), 4),
    }


def slower(path: Path) -> Path:
    """A calibration of which every step takes `SLOW` times as long."""
    from dopd import _router

    found: dict[str, Any] = json.loads(_router.timings_json("h100-8b"))
    slow = {name: value if name in NOT_TIMES else value * SLOW for name, value in found.items()}
    slow["handoff_bytes_per_s"] /= SLOW
    path.write_text(json.dumps(slow | {"name": "slower"}))
    return path


def simulated(trace: sim.Trace, timings: Path, prefill: int, decode: int, kv_tokens: int) -> Pairs:
    """What the simulator tells."""
    result = sim.simulate(
        trace,
        timings=timings,
        num_seqs_max=NUM_SEQS_MAX,
        batch_tokens_max=BATCH_TOKENS_MAX,
        kv_tokens=kv_tokens,
        workers=prefill + decode,
        prefill_workers=prefill,
        slo_ttft_ms=SLO_TTFT_MS,
        slo_tpot_ms=SLO_TPOT_MS,
        slo_prefill_ratio=0.0,
    )
    first = result.ttft_s * 1e3
    later = result.tpot_s * 1e3
    return list(zip(first.tolist(), later.tolist(), strict=True))


def summary(pairs: Pairs, seconds: float) -> dict[str, float]:
    """The figures of a scene that took so long."""
    first = sorted(ttft for ttft, _ in pairs)
    later = sorted(tpot for _, tpot in pairs if tpot == tpot)
    good = sum(ttft <= SLO_TTFT_MS and not tpot > SLO_TPOT_MS for ttft, tpot in pairs)
    return {
        "ttft_p50": quantile(first, 0.5),
        "ttft_p90": quantile(first, 0.9),
        "tpot_p50": quantile(later, 0.5),
        "tpot_p90": quantile(later, 0.9),
        "good_per_s": good / seconds,
    }


def quantile(values: list[float], part: float) -> float:
    """Of sorted values."""
    return values[min(round(part * (len(values) - 1)), len(values) - 1)] if values else 0.0


def real(trace: sim.Trace, timings: Path, prefill: int, decode: int) -> tuple[Pairs, int]:
    """The same through `dopd serve --mock`, and the tokens that a worker's pool holds."""
    from dopd.cli import http
    from dopd.cli.bench import arguments, load, report
    from dopd.cli.bench.arrivals import plan

    words = ["--mock", "--mock-timings", str(timings), "--prefill", str(prefill)]
    words += ["--decode", str(decode)]
    words += ["--slo-ttft-ms", f"{SLO_TTFT_MS:.0f}", "--slo-tpot-ms", f"{SLO_TPOT_MS:.0f}"]
    words += [f"--worker-arg=--max-num-seqs={NUM_SEQS_MAX}"]
    words += [f"--worker-arg=--max-batch-tokens={BATCH_TOKENS_MAX}"]
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as folder:
        file = Path(folder) / "trace.csv"
        rows = zip(
            trace.arrival_s.tolist(),
            trace.prompt_tokens.tolist(),
            trace.output_tokens.tolist(),
            strict=True,
        )
        lines = [f"{at:.6f},{prompt},{output}" for at, prompt, output in rows]
        file.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
        with serving(*words) as ready:
            url = f"http://{ready['http']}"
            args = arguments.parse(["--url", url, "--trace", str(file)])
            target = load.Target.of(http.Server(url), None)
            result = load.run(args, target, plan(args))
            status = json.load(urllib.request.urlopen(f"{url}/status", timeout=10))
    pages = status["workers"][0]["pages"]["total"]
    pairs = [
        (first, math.nan if (tpot := report.tpot_ms(one)) is None else tpot)
        for one in result.samples
        if (first := report.ttft_ms(one)) is not None
    ]
    return pairs, pages * 16


def table(rows: list[dict[str, Any]]) -> str:
    """Simulated, real and error of each figure."""
    lines = [
        (
            row["scene"],
            *(
                f"{row['simulated'][one]:.1f} / {row['real'][one]:.1f} {row['errors'][one]:+.0%}"
                for one in FIGURES
            ),
        )
        for row in rows
    ]
    header = ("SIMULATED / REAL", *FIGURES)
    return console.table(header, lines, right=frozenset(range(1, len(header))))


def vllm(name: str) -> dict[str, Any]:
    """One overloaded run of vLLM 0.19 on RTX PRO 6000 beside one mixed worker, by arrival.

    Fitted on the run: most sequences at once, time of a decode step by their number (from TPOT,
    less prompts computed meanwhile), time per prompt token (from its first request). Not fitted,
    and so what is checked: who waits how long, and how many run. What cannot be modelled: its
    chunks, the sizes of its CUDA graphs, context lengths within one step.
    """
    file = data() / "perf" / f"vllm_run_rtxpro6000_{name}.csv.gz"
    with gzip.open(file, "rt") as lines:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    fitted = fit(rows)
    trace = sim.Trace.of(
        [row["arrival_s"] for row in rows],
        [int(row["prompt_tokens"]) for row in rows],
        [int(row["output_tokens"]) for row in rows],
        name=name,
    )
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as folder:
        timings = Path(folder) / "timings.json"
        timings.write_text(json.dumps(fitted["timings"]))
        result = sim.simulate(
            trace,
            workers=1,
            policy="agg-2048-fcfs",
            timings=timings,
            kv_tokens=100_000_000,
            num_seqs_max=fitted["seqs"],
            rules={"refuse": "never", "step": {"mode": "fill"}},
        )
    first, end = result.ttft_s, (result.columns["end_us"] - result.columns["arrival_us"]) / 1e6
    pairs = {
        "ttft_s": (first.tolist(), [row["ttft_s"] for row in rows]),
        "e2e_s": (end.tolist(), [row["e2e_s"] for row in rows]),
        "tpot_ms": ((result.tpot_s * 1e3).tolist(), [row["tpot_ms"] for row in rows]),
    }
    found: dict[str, Any] = {"run": name, "fitted": fitted}
    for field, (told, seen) in pairs.items():
        for part in (0.5, 0.9):
            a, b = quantile(sorted(told), part), quantile(sorted(seen), part)
            found[f"{field}_p{100 * part:.0f}"] = {
                "simulated": round(a, 3), "real": round(b, 3), "error": round(a / b - 1, 4)
            }  # fmt: skip
    return found


def fit(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Limits and rates that the run itself shows."""
    spans = [(row["arrival_s"] + row["queue_s"], row["arrival_s"] + row["e2e_s"]) for row in rows]
    events = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    seqs, most = 0, 0
    for _, change in events:
        seqs += change
        most = max(most, seqs)

    def running(start: float, end: float) -> float:
        """Sequences on the mean while this one ran."""
        shared = sum(max(0.0, min(end, b) - max(start, a)) for a, b in spans)
        return shared / (end - start)

    # Unloaded: the first one had the machine for itself.
    rate = 1e6 * (rows[0]["ttft_s"] - rows[0]["queue_s"]) / rows[0]["prompt_tokens"]
    # A token's time: a step of those that run, and prompts that were computed meanwhile.
    later = []
    for row in rows:
        first = row["arrival_s"] + row["ttft_s"]
        end = row["arrival_s"] + row["e2e_s"]
        prompts = sum(
            one["prompt_tokens"] for one in rows if first < one["arrival_s"] + one["ttft_s"] <= end
        )
        steps = max(row["output_tokens"] - 1, 1)
        later.append((running(first, end), (1e6 * (end - first) - rate * prompts) / steps))
    slope, base = statistics.linear_regression(*zip(*later, strict=True))
    names = (
        *("step_prefill_us", "step_decode_us", "compute_us_per_token", "attention_us_per_pair"),
        *("context_us_per_token", "mixed_penalty_ratio", "handoff_bytes_per_s", "handoff_fixed_us"),
    )
    timings = {
        "name": "fitted",
        **dict.fromkeys(names, 0.0),
        "weights_us": max(base, 0.0),
        "memory_us_per_token": rate,
        # A sequence is a token of the step, too.
        "batch_us_per_seq": max(slope - rate, 0.0),
    }
    return {"seqs": most, "timings": timings}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
