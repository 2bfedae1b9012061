"""dopd's simulator: what a policy is worth on a trace, with the very brain that serves.

    from dopd import sim

    trace = sim.load("azure.csv.gz").scaled(20)
    result = sim.simulate(trace, policy="dopd", workers=8)
    result.attainment, result.ttft_s

Everything that comes from here is simulated, and called so. NumPy is imported when an array is
asked for, not before.
"""

from __future__ import annotations

from dopd.sim.find import Found, find_rate
from dopd.sim.grid import run_grid
from dopd.sim.runs import Request, Result, SimulationError, policies, simulate
from dopd.sim.trace import Trace, load

__all__ = [
    "Found",
    "Request",
    "Result",
    "SimulationError",
    "Trace",
    "find_rate",
    "load",
    "policies",
    "run_grid",
    "simulate",
]
