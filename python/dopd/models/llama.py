"""The Llama family: the textbook transformer over the ragged tokens of one step.

Owns the weights. Knows nothing of pages: `attention` keeps the keys and values of every sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dopd.attention.base import Attention
from dopd.layers.kernels import Kernels, Rotation
from dopd.layers.linear import make_linear
from dopd.weights.checkpoint import Checkpoint
from dopd.weights.config import ModelConfig

Fetch = Callable[[str], Tensor]


class Llama:
    """Embedding, `num_layers` times (attention, MLP), norm, output head."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float, int], None],
    ) -> None:
        """Read and place the weights.

        kernels: see `models.kernels`. progress gets the share done, to 1.0, and the bytes placed.
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
        self.kernels = kernels
        self._layers = []
        for index in range(config.num_layers):
            self._layers.append(LlamaLayer(config, index, kernels, fetch))
            # The last word is said when norm and head are there, too.
            progress(index / config.num_layers, num_bytes)
        self._norm = fetch("model.norm.weight")
        self._head = make_linear(embedding if config.tie_embeddings else fetch("lm_head.weight"))
        progress(1.0, num_bytes)

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Compute one step that `attention` has planned.

        tokens, positions: [tokens] int64, rows end to end, on the model's device. Returns hidden
        states [tokens, hidden] in the model's dtype.
        """
        residual = F.embedding(tokens, self._embedding)
        rotate = self.kernels.rotation(positions)
        first, eps = self._layers[0], self.config.rms_norm_eps
        x = self.kernels.rms_norm(residual, first.attention_norm, eps)
        for layer, following in zip(self._layers, self._layers[1:], strict=False):
            x, residual = layer(x, residual, rotate, attention)
            x, residual = self.kernels.add_rms_norm(x, residual, following.attention_norm, eps)
        x, residual = self._layers[-1](x, residual, rotate, attention)
        return residual + x

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows each of these hidden states: [tokens, vocab_size], in the model's dtype."""
        return self._head(self.kernels.rms_norm(hidden, self._norm, self.config.rms_norm_eps))


class LlamaLayer:
    """One layer: r = residual + attention(norm(residual)), then r + mlp(norm(r)).

    The norm before and the sum after it are the caller's: a sum and the norm that follows are one
    kernel. Matrices that share an input are one product.
    """

    def __init__(self, config: ModelConfig, index: int, kernels: Kernels, fetch: Fetch) -> None:
        self._index = index
        self._config = config
        self._kernels = kernels
        layer = f"model.layers.{index}."
        self.attention_norm = fetch(layer + "input_layernorm.weight")
        self._qkv = make_linear(
            torch.cat([fetch(f"{layer}self_attn.{part}_proj.weight") for part in "qkv"])
        )
        self._output = make_linear(fetch(layer + "self_attn.o_proj.weight"))
        self._mlp_norm = fetch(layer + "post_attention_layernorm.weight")
        self._gate_up = make_linear(
            torch.cat([fetch(f"{layer}mlp.{part}_proj.weight") for part in ("gate", "up")])
        )
        self._down = make_linear(fetch(layer + "mlp.down_proj.weight"))

    def __call__(
        self, x: Tensor, residual: Tensor, rotate: Rotation, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """x: the residual, normed. Returns what is to be added to the residual, and that.

        All are [tokens, hidden]; both arguments may be overwritten.
        """
        x = self._attend(x, rotate, attention)
        eps = self._config.rms_norm_eps
        x, residual = self._kernels.add_rms_norm(x, residual, self._mlp_norm, eps)
        return self._down(self._kernels.silu_mul(self._gate_up(x))), residual

    def _attend(self, x: Tensor, rotate: Rotation, attention: Attention) -> Tensor:
        num_heads, num_kv_heads = self._config.num_heads, self._config.num_kv_heads
        # [tokens, heads of q, k and v, head_dim]; q and k are turned in one go.
        qkv = self._qkv(x).view(len(x), num_heads + 2 * num_kv_heads, self._config.head_dim)
        turned = rotate(qkv[:, : num_heads + num_kv_heads])
        query, key = turned[:, :num_heads], turned[:, num_heads:]
        value = qkv[:, num_heads + num_kv_heads :]
        attention.append(self._index, key, value)
        return self._output(attention.run(self._index, query).reshape(len(x), -1))
