"""What dopd's policy is worth in the simulator, beside those of the literature, rule by rule.

    python -m bench.sim_worth            the grids of the issue; about an hour on 2 cores
    python -m bench.sim_worth --quick    five minutes of every trace, 8B only, 20 %; minutes
    ... --judge                          nothing is run: what is done by now is judged and drawn

Cells that are done are in bench/results/sim_worth[_quick].jsonl and are not run again: interrupt
it at any time. Each names the extension that it was run with, by a hash of its file: with another
one it is run anew. Everything is simulated. Results are compared with those of the policy study
(section 6 of policies.md, 4 and 5 of policy.md), which another simulator gave: within 5 % of a
rate, 2 points of an attainment, or the row says what differs.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from bench import sim_cells as cells
from bench.common import RESULTS, finish, skip
from bench.sim_judge import judged, pictures
from dopd import _router, sim
from dopd.sim import grid as grids
from dopd.sim import study

SHARE = 0.9
KEEP = ("attainment", "goodput", "ttft_ms", "tpot_ms", "utilisation", "counts")


def grid(*, is_quick: bool) -> list[dict[str, Any]]:
    """All cells, the most telling first."""
    found = rates("8b", 0.2)
    for name in cells.SOURCES:
        found += ablated(name, is_quick=is_quick)
    if not is_quick:
        found += rates("8b", 0.0) + rates("70b", 0.2) + rates("70b", 0.0)
        # Pauses on and off where mixing is free and where it is dear.
        for name in cells.SOURCES:
            for penalty in (0.0, 0.4):
                found += [
                    fixed(name, text, cells.BASE | cells.ABLATIONS[text], penalty=penalty)
                    for text in ("policy", "no pauses")
                ]
        for name in cells.NAMED:
            found += [fixed(name, "policy", cells.BASE, seed=seed) for seed in cells.SEEDS[1:]]
            found += [rate("8b", 0.4, name, rival) for rival in ("pull-dyn", "hybrid", "dopd*")]
            found += [large(name, policy) for policy in ("static-32:32", "pull-dyn", "dopd")]
    # Another build may decide otherwise: what it gave is not this one's.
    build = hashlib.blake2b(Path(str(_router.__file__)).read_bytes(), digest_size=6).hexdigest()
    return [cell | {"build": build} for cell in found]


def ablated(name: str, *, is_quick: bool) -> list[dict[str, Any]]:
    """The policy without each rule, and what it owes long prompts."""
    is_cut = name in cells.LARGEST and not is_quick
    found = []
    for text, rules in cells.ABLATIONS.items():
        cell = fixed(name, text, cells.BASE | rules)
        if text in cells.WHOLE or not is_cut:
            found.append(cell)
        if is_cut and (text == "policy" or text not in cells.WHOLE):
            found.append(cell | {"seconds": cells.LARGEST_S})
    curve = [(f"fair {rho:g}", cells.RIVAL | {"fair_ratio": rho}) for rho in cells.FAIR]
    return found + [fixed(name, text, rules) for text, rules in curve]


def rates(model: str, penalty: float) -> list[dict[str, Any]]:
    """Every trace under every rival whose figure depends on the penalty."""
    return [
        rate(model, penalty, name, rival)
        for name in cells.SOURCES
        for rival in cells.RIVALS
        if penalty or rival not in cells.PURE
    ]


def rate(model: str, penalty: float, trace: str, policy: str) -> dict[str, Any]:
    """Highest rate at 90 %."""
    rules = cells.BASE if policy.startswith("dopd") else cells.RIVAL
    return {"what": "rate", "model": model, "penalty": penalty, "trace": trace, "policy": policy,
            "rules": rules}  # fmt: skip


def fixed(
    trace: str, text: str, rules: dict[str, Any], *, penalty: float = 0.2, seed: int = 1
) -> dict[str, Any]:
    """Attainment of dopd with other rules at the study's rate."""
    return {"what": "fixed", "model": "8b", "penalty": penalty, "trace": trace, "rules": rules,
            "text": text, "seed": seed}  # fmt: skip


def large(trace: str, policy: str) -> dict[str, Any]:
    """Highest rate of 64 workers."""
    return rate("8b", 0.2, trace, policy) | {"workers": cells.LARGE}


def work(cell: dict[str, Any], *, is_quick: bool) -> dict[str, Any]:
    """One cell: a search or a run."""
    workers = cell.get("workers", 8)
    options: dict[str, Any] = {
        "workers": workers,
        "model": cells.MODELS[cell["model"]],
        "mixed_penalty": cell["penalty"],
        "rules": cell["rules"],
        "seed": cell.get("seed", 1),
    }
    name = cell["trace"]
    start, split = cells.SOURCES[name].starts[cell["model"]]
    if cell["what"] == "rate":
        seconds = cells.LARGE_S if workers > 8 else None
        trace = cells.trace(name, is_quick=is_quick, seconds=seconds)
        policy = cell["policy"]
        guess = cells.SOURCES[name].labels - 1 if policy in ("dopd*", "hybrid") else split - 1
        start *= workers / 8 * cells.OVER_STATIC.get(policy, 1.0)
        found = study.find(trace, policy, SHARE, options, workers, start, guess)
        return short(found) | {"factor": found["factor"], "tries": len(found["tries"])}
    trace = cells.trace(name, is_quick=is_quick, seconds=cell.get("seconds"))
    trace = trace.scaled(cells.ABLATION_RATES[name], seed=options["seed"])
    # Labels are fixed: the study's best fixed count over all traces.
    return short(study.judge(trace, "dopd-2", options, workers))


def short(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: no series."""
    kept = {name: found["figures"][name] for name in KEEP}
    return {"policy": found["policy"], "wall_s": found["wall_s"], **kept}


def main(argv: list[str]) -> int:
    """Run what is not done, judge all of it, draw."""
    is_quick = "--quick" in argv
    name = "sim_worth_quick" if is_quick else "sim_worth"
    if not (cells.data() / "traces").is_dir():
        return skip(name, f"no traces in {cells.data()}; set DOPD_DATA")
    wanted, path = grid(is_quick=is_quick), RESULTS / f"{name}.jsonl"
    if "--judge" in argv:
        by_name = grids.done(path)
        names = [(cell, grids.name_of(cell)) for cell in wanted]
        done = [(cell, by_name[one]) for cell, one in names if one in by_name]
    else:
        done = sim.run_grid(wanted, lambda cell: work(cell, is_quick=is_quick), path, title=name)
    result = judged(done)
    result["cells"] = {"asked": len(wanted), "done": len(done)}
    for line in result.pop("report"):
        print(line)
    pictures(done, RESULTS / name)
    return finish(name, {"simulated": True, "is_quick": is_quick, **result})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
