"""The Llama family: the textbook transformer over the ragged tokens of one step.

Owns the weights. Knows nothing of pages: `attention` keeps the keys and values of every sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dopd.attention.base import Attention
from dopd.layers.linear import make_linear
from dopd.layers.norm import RmsNorm
from dopd.layers.rope import Rope, rotate
from dopd.models.frequencies import inverse_frequencies
from dopd.weights.checkpoint import Checkpoint
from dopd.weights.config import ModelConfig

Fetch = Callable[[str], Tensor]


class Llama:
    """Embedding, `num_layers` times (attention, MLP), norm, output head."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        num_positions: int,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float, int], None],
    ) -> None:
        """Read and place the weights.

        num_positions: the longest sequence. progress gets the share done, to 1.0, and the bytes
        placed.
        """
        config = checkpoint.config
        self.config = config

        num_bytes = 0

        def fetch(name: str) -> Tensor:
            nonlocal num_bytes
            tensor = checkpoint.tensor(name).to(device, dtype)
            num_bytes += tensor.nbytes
            return tensor

        embedding = fetch("model.embed_tokens.weight")
        self._embedding = embedding
        self._rope = Rope(inverse_frequencies(config), num_positions, dtype, device)
        self._layers = []
        for index in range(config.num_layers):
            self._layers.append(LlamaLayer(config, index, fetch))
            # The last word is said when norm and head are there, too.
            progress(index / config.num_layers, num_bytes)
        self._norm = RmsNorm(fetch("model.norm.weight"), config.rms_norm_eps)
        self._head = make_linear(embedding if config.tie_embeddings else fetch("lm_head.weight"))
        progress(1.0, num_bytes)

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Compute one step that `attention` has planned.

        tokens, positions: [tokens] int64, rows end to end, on the model's device. Returns hidden
        states [tokens, hidden] in the model's dtype.
        """
        x = F.embedding(tokens, self._embedding)
        cos, sin = self._rope.at(positions)
        for layer in self._layers:
            x = layer(x, cos, sin, attention)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows each of these hidden states: [tokens, vocab_size], in the model's dtype."""
        return self._head(self._norm(hidden))


class LlamaLayer:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Matrices that share an input are one product.
    """

    def __init__(self, config: ModelConfig, index: int, fetch: Fetch) -> None:
        self._index = index
        self._config = config
        layer = f"model.layers.{index}."
        eps = config.rms_norm_eps
        self._attention_norm = RmsNorm(fetch(layer + "input_layernorm.weight"), eps)
        self._qkv = make_linear(
            torch.cat([fetch(f"{layer}self_attn.{part}_proj.weight") for part in "qkv"])
        )
        self._output = make_linear(fetch(layer + "self_attn.o_proj.weight"))
        self._mlp_norm = RmsNorm(fetch(layer + "post_attention_layernorm.weight"), eps)
        self._gate_up = make_linear(
            torch.cat([fetch(f"{layer}mlp.{part}_proj.weight") for part in ("gate", "up")])
        )
        self._down = make_linear(fetch(layer + "mlp.down_proj.weight"))

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """x: [tokens, hidden]; returns the same shape."""
        x = x + self._attend(self._attention_norm(x), cos, sin, attention)
        return x + self._mlp(self._mlp_norm(x))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        num_heads, num_kv_heads = self._config.num_heads, self._config.num_kv_heads
        # [tokens, heads of q, k and v, head_dim]; q and k are turned in one go.
        qkv = self._qkv(x).view(len(x), num_heads + 2 * num_kv_heads, self._config.head_dim)
        turned = rotate(qkv[:, : num_heads + num_kv_heads], cos, sin)
        query, key = turned[:, :num_heads], turned[:, num_heads:]
        value = qkv[:, num_heads + num_kv_heads :]
        attention.append(self._index, key, value)
        return self._output(attention.run(self._index, query).reshape(len(x), -1))

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return self._down(F.silu(gate) * up)
