"""Models that are made up: the shape of a known one, weights from a seed, bytes as tokens.

For tests and benches, where speed and equality count and text does not, as vLLM's `--load-format
dummy`. Named `random:NAME[:SEED]` wherever a model is; the router knows the same names
(`router/src/tokens/made_up.rs`). Imports no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dopd.errors import ModelError
from dopd.weights.config import ModelConfig, RopeScaling

PREFIX = "random:"
# The mock's tokenizer: bytes, and the two tokens of ChatML, of which one ends an answer.
END_TOKEN = 257
SEED_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class MadeUp:
    """One made-up model."""

    name: str
    seed: int
    config: ModelConfig

    def model_hash(self) -> bytes:
        """What `weights.hash.model_hash` is for files, 32 bytes."""
        return hashlib.sha256(f"dopd-random-1:{self.name}:{self.seed}".encode()).digest()


def _config(
    vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, positions: int
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_positions=positions,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        rope_scaling=None,
        tie_embeddings=True,
        eos_token_ids=frozenset({END_TOKEN}),
    )


def _llama_8b() -> ModelConfig:
    return ModelConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_positions=131_072,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        tie_embeddings=False,
        eos_token_ids=frozenset({END_TOKEN}),
    )


CONFIGS = {
    # Heads of 64, the least that GPU kernels are made for.
    "tiny": _config(512, 256, 512, 2, 4, 2, 4096),
    "smollm2-135m": _config(49_152, 576, 1536, 30, 9, 3, 8192),
    "llama-3.1-8b": _llama_8b(),
}


def parse(model: str | Path) -> MadeUp | None:
    """The model of this name; None if it names none of these but a path. Raises ModelError."""
    text = str(model)
    if not text.startswith(PREFIX):
        return None
    name, _, seed = text.removeprefix(PREFIX).partition(":")
    if name not in CONFIGS:
        raise ModelError(f"model {text}: no such shape; there are {', '.join(CONFIGS)}")
    if seed and not (seed.isascii() and seed.isdecimal() and int(seed) <= SEED_MAX):
        raise ModelError(f"model {text}: the seed is {seed!r}, must be 0 to {SEED_MAX}")
    return MadeUp(name, int(seed or 0), CONFIGS[name])
