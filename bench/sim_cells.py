"""Cells of bench/sim_worth.py: traces, calibrations, policies, and what the policy study saw.

`policies.md` and `policy.md` of the design name the figures; those were simulated as well, by
another program whose brain was another one. Ratios within one simulator are what is compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import REPO
from dopd import sim

# Seconds of the long traces, as in the study.
CUT_S = 1800.0
QUICK_S = 300.0


def data() -> Path:
    """DOPD_DATA, or `shared/data` beside the repository."""
    return Path(os.environ.get("DOPD_DATA") or REPO.parent / "shared" / "data")


@dataclass(frozen=True)
class Source:
    """A trace; `starts`: where the search for the rate of static splits begins, per calibration,
    and the split; `labels`: prefill labels with which dopd's search begins."""

    file: str
    starts: dict[str, tuple[float, int]]
    seconds: float | None = None
    labels: int = 2


SOURCES = {
    "conv": Source("azure2023_conv_part1.csv.gz", {"8b": (27.4, 4), "70b": (12.1, 5)}),
    "code": Source("azure2023_code_part1.csv.gz", {"8b": (14.0, 7), "70b": (4.43, 7)}, labels=7),
    "m-large": Source(
        "servegen_m-large_day2_generated.csv.gz", {"8b": (26.6, 3), "70b": (11.8, 4)}, CUT_S
    ),
    "r1": Source(
        "servegen_deepseek-r1_halfday0_generated.csv.gz", {"8b": (4.5, 1), "70b": (3.21, 2)}, CUT_S
    ),
    "mconv": Source(
        "mooncake_conversation_part1.jsonl.gz", {"8b": (2.57, 5), "70b": (1.46, 6)}, labels=4
    ),
    "msyn": Source(
        "mooncake_synthetic_part1.jsonl.gz", {"8b": (3.37, 6), "70b": (1.04, 6)}, labels=5
    ),
    "shift": Source("", {"8b": (15.0, 3), "70b": (6.84, 5)}),
}
MODELS = {"8b": "llama-3.1-8b", "70b": "llama-70b"}
PENALTIES = (0.0, 0.2)
# Best by rate at 90 %: fixed labels, our order or by arrival; both on every worker; dopd.
RIVALS = ("static", "static-fcfs", "pull-dyn", "hybrid", "dopd*")
# Where their searches begin, over the best static split. Rivals by arrival: about the study's.
OVER_STATIC = {"static": 1.0, "static-fcfs": 0.6, "pull-dyn": 0.8, "hybrid": 0.97, "dopd*": 1.03}
# Their workers never mix: the penalty changes nothing.
PURE = ("static", "static-fcfs")
# fair 0: what the study's rivals were compared with; its price is the curve of fairness. Nor did
# its requests have tenants: ServeGen's clients do not share here, under no policy.
RIVAL = {"share_tenants": False}
BASE = RIVAL | {"fair_ratio": 0.0}
# Rates of policy.md section 4, ablation: 8b tight, 20 %; attainment near 90 %.
ABLATION_RATES = {
    "conv": 27.5,
    "code": 13.6,
    "m-large": 31.0,
    "r1": 5.7,
    "mconv": 2.5,
    "msyn": 3.5,
    "shift": 24.0,
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "policy": {},
    "no pauses": {"step": {"mode": "chunk_in_time"}},
    "no steal": {"steal": "never"},
    "no keep": {"keep": False},
    "no gate": {"gate": False},
    "no demotion": {"demote": False},
    "by arrival": {"order": "fcfs"},
    "by arrival, no demotion": {"order": "fcfs", "demote": False, "refuse": "never"},
    "shortest first": {"order": "sjf"},
    "nearest target first": {"order": "edf"},
    "bound early": {"bind": "early"},
    "most pages": {"place": "most_pages"},
    "round robin": {"place": "round_robin"},
    "no step limit": {"place_step_ratio": 0.0},
    "reserve max_tokens": {"reserve": "max_tokens"},
    "tenants share": {"share_tenants": True},
    "late ones wait": {"refuse": "never"},
    "refuse early": {"refuse": "early"},
    "no linger": {"linger_ratio": 0.0},
    "linger 8 tokens": {"linger_ratio": 0.5, "linger_tokens": 8},
    "belief 0": {"step": {"mixed_penalty_start": 0.0}},
    "belief 50 %": {"step": {"mixed_penalty_start": 0.5}},
}
# Rows of the whole trace; the others are of the first minutes of the two that have most requests,
# against the policy on those.
WHOLE = ("policy", "no pauses", "no linger", "no steal", "tenants share")
LARGEST, LARGEST_S = ("conv", "m-large"), 600.0
# 0 is the policy of the ablation.
FAIR = (0.5, 0.7, 1.0)
# Three named cells: seeds, 40 %, 64 workers.
NAMED = ("conv", "mconv", "shift")
SEEDS = (1, 2, 3)
LARGE = 64
LARGE_S = 200.0


def trace(name: str, *, is_quick: bool, seed: int = 1, seconds: float | None = None) -> sim.Trace:
    """A trace of the study at its own rate."""
    source = SOURCES[name]
    folder = data() / "traces"
    if name == "shift":
        code, r1 = (folder / SOURCES[one].file for one in ("code", "r1"))
        turn = 75 if is_quick else 300
        return sim.load(f"shift:a={code},b={r1},rate=1,seconds={turn},rounds=2", seed=seed)
    cut = seconds or (QUICK_S if is_quick else source.seconds)
    found = sim.load(folder / source.file)
    return found if cut is None else found.first(cut)
