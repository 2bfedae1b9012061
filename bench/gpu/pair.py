"""Prefill and decode in two processes on one GPU against one mixed worker, at the same load.

Both servers run after each other, in turns, with the same requests; the load is set to a share of
what the mixed worker computes at best.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from bench.common import DOPD, REPO, serving
from bench.gpu.setup import Setup

FLEETS = {"split": ("--prefill", "1", "--decode", "1"), "mixed": ("--mixed", "1")}
PROMPT, ANSWER, ROUNDS = 1024, 128, 2
RATES = (2.0, 6.0, 12.0)


def main(setup: Setup) -> dict[str, Any]:
    """By rate and fleet: TTFT and TPOT in ms, medians over the rounds' percentiles."""
    model = setup.large_model
    found: dict[str, Any] = {"model": model, "rounds": []}
    for _ in range(1 if setup.small else ROUNDS):
        for fleet, words in FLEETS.items():
            with serving(model, *words) as ready:
                for rate in RATES[:1] if setup.small else RATES:
                    report = load(ready, rate, setup)
                    found["rounds"].append({"fleet": fleet, "rate": rate} | report)
    return found


def load(ready: dict[str, Any], rate: float, setup: Setup) -> dict[str, Any]:
    """One run of `dopd bench`."""
    prompt, answer, requests = (32, 8, 4) if setup.small else (PROMPT, ANSWER, int(20 * rate))
    words = ["--rate", str(rate), "--requests", str(requests), "--seed", "1"]
    words += ["--prompt-tokens", str(prompt), "--output-tokens", str(answer)]
    command = [*DOPD, "bench", "--url", f"http://{ready['http']}", *words, "--json", "-"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    print(json.dumps(main(Setup())))
