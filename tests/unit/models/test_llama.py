"""The forward pass against transformers: a seeded Llama that it saved, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from tests.support import reference, smollm2, stepping

NUM_TOKENS = 24
PROMPTS = [
    [5, 9, 300, 7],
    [1],
    list(range(40, 140)),
    [17] * 33,
    [2, 4, 8, 16, 32, 64, 128, 256] * 3,
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama3-rope": {"rope_parameters": LLAMA3},
    "linear-rope": {"rope_parameters": LINEAR},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
}


def load_tiny(folder: Path, **changes: Any) -> TorchEngine:
    return load(folder, dtype="float32", device="cpu", kv_memory="8MiB", **changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = reference.tiny_llama(**VARIANTS[variant])
    expected = [reference.greedy(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    # Far from a tie, or equal tokens would be luck.
    assert min(answer.margin for answer in expected) > 1e-3
    assert len({token for answer in expected for token in answer.tokens}) > 20
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    engine = load_tiny(tmp_path)

    for budget in (stepping.UNBOUNDED, 7):
        running = stepping.start(engine, PROMPTS, NUM_TOKENS)
        stepping.run(engine, running, NUM_TOKENS, budget)
        for sequence, answer in zip(running, expected, strict=True):
            assert sequence.tokens == answer.tokens
            assert smollm2.worst_logprob(sequence, answer.top) < 1e-3


def test_scaled_rope_changes_the_answer() -> None:
    """Guards the test above: with rope scaling left out it would have to fail."""
    answers = set()
    for variant in ({}, VARIANTS["llama3-rope"], VARIANTS["linear-rope"]):
        answer = reference.greedy(reference.tiny_llama(**variant), PROMPTS[2], NUM_TOKENS)
        answers.add(tuple(answer.tokens))
    assert len(answers) == 3


def test_page_size_does_not_change_the_answer(tmp_path: Path) -> None:
    reference.tiny_llama().save_pretrained(tmp_path)
    answers = []
    for page_size in (1, 5, 16, 64):
        engine = load_tiny(tmp_path, page_size=page_size)
        running = stepping.start(engine, PROMPTS[:3], NUM_TOKENS)
        answers.append(stepping.run(engine, running, NUM_TOKENS, budget=11))
    assert all(answer == answers[0] for answer in answers)
