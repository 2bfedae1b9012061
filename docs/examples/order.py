"""An ordering policy of one's own beside the built-in ones, on bursts of code completions.

python docs/examples/order.py [OUT.svg]        all simulated; a few seconds, no file needed
"""

from __future__ import annotations

import sys
from typing import Any

from dopd import sim
from dopd.sim.plot import Bars, Figure, save

# Bursts (coefficient of variation 3) of prompts with a long tail, short answers.
LOAD = "gamma:rate=75,cv=3,prompt=1400~0.9,output=60~0.8,seconds=120"
SLO_TTFT_S = 0.5


def least_slack(request: sim.Request, now: float) -> float:
    """Who has the least time left when it must begin to be in time."""
    return now + max(SLO_TTFT_S, 3 * request.prefill_s) - request.prefill_s


def short_first_in_classes(request: sim.Request, now: float) -> float:
    """By arrival within three classes of length, the shorter class first by up to two seconds."""
    return now + (0.0 if request.prefill_s < 0.05 else 1.0 if request.prefill_s < 0.2 else 2.0)


def main(out: str = "order.svg") -> dict[str, tuple[float, float]]:
    """Share of requests that met both targets, of all and of the longest tenth, in percent."""
    trace = sim.load(LOAD, seed=1)
    orders: dict[str, dict[str, Any]] = {
        "aged (dopd)": {"rules": {"order": "aged", "fair_ratio": 0}},
        "by arrival": {"rules": {"order": "fcfs"}},
        "shortest first": {"rules": {"order": "sjf", "fair_ratio": 0}},
        "least slack": {"rules": {"order": "fcfs"}, "order": least_slack},
        "three classes": {"rules": {"order": "fcfs"}, "order": short_first_in_classes},
    }
    found = {}
    for name, options in orders.items():
        # static-4:4 leaves only the order to decide.
        figures = sim.simulate(trace, policy="static-4:4", **options).figures["attainment"]
        found[name] = (100 * figures["overall"], 100 * figures["longest_tenth"])
        print(f"{name:<15} {found[name][0]:5.1f} %   longest tenth {found[name][1]:5.1f} %")
    groups = {
        "all requests": [overall for overall, _ in found.values()],
        "longest tenth": [longest for _, longest in found.values()],
    }
    bars = Bars("Met both targets", "% of requests", list(found), groups, limit=100)
    save(Figure("Orders of a queue, simulated", [bars], f"{LOAD}, 8 x h100, 4:4"), out)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
