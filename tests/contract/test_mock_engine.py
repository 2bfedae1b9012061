"""The Python mock engine, its hashes and its pages, against the vectors of the Rust mock worker."""

from __future__ import annotations

import json
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dopd import wire
from dopd.engine.mock import GEOMETRY, MockEngine
from dopd.sched.batch import Batcher
from dopd.sched.sequence import Sequence, tokens_hash
from dopd.types import Compute, Limits, LogitAdjustments, Open, SamplingParams, Scored

VECTORS = json.loads((Path(__file__).parent / "mock_vectors.json").read_text())
# Page 0 last: a position must be looked up in the sequence's pages.
PAGES = [3, 1, 0, 2, *range(4, 400)]


def run(
    case: dict[str, Any], max_batch_tokens: int
) -> tuple[Sequence, MockEngine, list[Any], list[Any]]:
    """All steps of one case, its prompt in chunks; the last token's KV is computed too."""
    sampling = SamplingParams(
        temperature=case["temperature"],
        seed=case["seed"],
        choice=case["choice"],
        top_logprobs=case["top_logprobs"],
    )
    limits = Limits(VECTORS["max_tokens"], ignore_eos=True)
    adjustments = LogitAdjustments(bias=tuple((token, value) for token, value in case["bias"]))
    opened = Open(
        1,
        400,
        len(case["prompt"]),
        limits,
        Compute(case["prompt"]),
        sampling,
        adjustments=adjustments,
        prompt_logprobs=case["top_logprobs"],
    )
    engine, batcher = MockEngine(400), Batcher(max_batch_tokens, 1)
    sequence = Sequence.of(opened, PAGES, 0, engine.eos_token_ids, engine.max_model_len)
    batcher.add(sequence)
    logprobs: list[Any] = []
    told: list[Any] = []
    while len(sequence.answer) < VECTORS["max_tokens"]:
        batch = batcher.plan()
        assert batch is not None
        (result,) = engine.step(batch.rows)
        if isinstance(result, Scored):
            assert batch.rows[0].start + 1 == 1 + len(told)
            told += result.prompt
            result = result.sampled
        sequence.computed += len(batch.rows[0].tokens)
        if result is not None:
            assert not isinstance(result, Exception)
            sequence.append(result.token)
            logprobs.append(result.logprobs)
        batcher.advance(batch)
    return sequence, engine, logprobs, told


@pytest.mark.parametrize("max_batch_tokens", [1, 7, 8192])
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_the_same_tokens_whatever_the_chunks(case: dict[str, Any], max_batch_tokens: int) -> None:
    sequence, engine, logprobs, told = run(case, max_batch_tokens)
    assert sequence.answer == case["tokens"]
    prompt_hash = sha256(struct.pack(f"<{len(case['prompt'])}I", *case["prompt"])).digest()[:8]
    assert int.from_bytes(prompt_hash, "little") == int(case["prompt_hash"], 16)
    assert tokens_hash(int(case["prompt_hash"], 16), sequence.answer) == int(
        case["tokens_hash"], 16
    )
    assert engine.pool.page(PAGES[0]).hex() == case["first_page"]
    if case["top_logprobs"] is not None:
        assert [one.chosen for one in logprobs] == case["logprobs"]
        assert [[t for t, _ in one.top] for one in logprobs] == case["top_tokens"]
        assert [[p for _, p in one.top] for one in logprobs] == case["top_token_logprobs"]
        assert len(told) == len(case["prompt"]) - 1
    assert [one.chosen for one in told] == case["prompt_logprobs"]
    assert [t for one in told for t, _ in one.top] == case["prompt_top_tokens"]
    assert [p for one in told for _, p in one.top] == case["prompt_top_logprobs"]


def test_model_and_layout_have_the_same_hashes() -> None:
    assert GEOMETRY.model_hash.hex() == VECTORS["model_hash"]
    assert wire.layout_hash(GEOMETRY) == int(VECTORS["layout_hash"], 16)
