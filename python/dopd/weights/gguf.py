"""GGUF files of the llama architecture, dequantised to float32 as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from dopd.errors import ModelError
from dopd.weights.config import ModelConfig, RopeScaling
from dopd.weights.gguf_header import Header, TensorInfo, Value, read_header

# Names of llama.cpp -> names of transformers. "{}" stands for the layer's number.
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
SUPPORTED_TYPES = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"}
)


class GgufCheckpoint:
    """One GGUF file under transformers' names.

    Its tensors are mapped, and dequantised when asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        header = read_header(path)
        self._infos = {_our_name(name): info for name, info in header.tensors.items()}
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        for info in header.tensors.values():
            self._check(info)
        self.config = self._config(header)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model; rope's factors belong to the config."""
        return {name: info.shape for name, info in self._infos.items() if name != ROPE_FACTORS}

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32, in transformers' order of rows."""
        tensor = torch.from_numpy(self._read(self._infos[name]))
        if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            num_heads = self.config.num_heads if is_query else self.config.num_kv_heads
            return _undo_interleave(tensor, num_heads)
        return tensor

    def _read(self, info: TensorInfo) -> np.ndarray:
        quantisation = GGMLQuantizationType(info.type_id)
        raw = self._data[info.offset : info.offset + _num_bytes(info)]
        if quantisation in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            stored = "<f4" if quantisation == GGMLQuantizationType.F32 else "<f2"
            return raw.view(stored).astype(np.float32).reshape(info.shape)
        rows = raw.reshape(*info.shape[:-1], -1)
        return np.asarray(dequantize(rows, quantisation), dtype=np.float32)

    def _check(self, info: TensorInfo) -> None:
        """The tensor's type is known and its bytes are within the file."""
        types = {int(kind): kind.name for kind in GGMLQuantizationType}
        kind = types.get(info.type_id, str(info.type_id))
        if kind not in SUPPORTED_TYPES:
            raise ModelError(
                f"tensor {info.name} has type {kind}; "
                f"supported: {', '.join(sorted(SUPPORTED_TYPES))}"
            )
        end = info.offset + _num_bytes(info)
        if end > len(self._data):
            raise ModelError(
                f"{self._path} is cut off: tensor {info.name} ends at byte {end}, "
                f"the file has {len(self._data)}; fetch it again"
            )

    def _config(self, header: Header) -> ModelConfig:
        fields = header.fields
        architecture = fields.get("general.architecture")
        if architecture != "llama":
            raise ModelError(
                f"GGUF architecture {architecture!r} is not supported; supported: llama"
            )
        hidden_size = _integer(fields, "llama.embedding_length")
        num_heads = _integer(fields, "llama.attention.head_count")
        head_dim = _integer(fields, "llama.attention.key_length", hidden_size // max(num_heads, 1))
        rotated = _integer(fields, "llama.rope.dimension_count", head_dim)
        if rotated != head_dim or _integer(fields, "llama.expert_count", 0):
            raise ModelError(
                f"GGUF model with {rotated} of {head_dim} dimensions rotated, or with experts, "
                f"is not supported"
            )
        embedding = self._infos.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelError(f"{self._path} has no matrix token_embd.weight")
        return ModelConfig(
            vocab_size=embedding.shape[0],
            hidden_size=hidden_size,
            intermediate_size=_integer(fields, "llama.feed_forward_length"),
            num_layers=_integer(fields, "llama.block_count"),
            num_heads=num_heads,
            num_kv_heads=_integer(fields, "llama.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            max_positions=_integer(fields, "llama.context_length"),
            rms_norm_eps=_number(fields, "llama.attention.layer_norm_rms_epsilon", 1e-5),
            rope_theta=_number(fields, "llama.rope.freq_base", 10_000.0),
            rope_scaling=self._rope_scaling(fields),
            tie_embeddings="lm_head.weight" not in self._infos,
            eos_token_ids=_eos_token_ids(fields),
        )

    def _rope_scaling(self, fields: Mapping[str, Value]) -> RopeScaling | None:
        if ROPE_FACTORS in self._infos:
            factors = self._read(self._infos[ROPE_FACTORS]).reshape(-1)
            return RopeScaling("factors", factors=tuple(float(factor) for factor in factors))
        kind = fields.get("llama.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind != "linear":
            raise ModelError(
                f"GGUF rope scaling {kind!r} is not supported; supported: none, linear"
            )
        return RopeScaling("linear", _number(fields, "llama.rope.scaling.factor"))


def _our_name(name: str) -> str:
    """A tensor's name in transformers; one that we do not know stays, and is refused later."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    return name


def _undo_interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of q and k from llama.cpp's interleaved pairs back to halves, as our rope turns them."""
    rows, columns = weight.shape
    return (
        weight.view(num_heads, rows // num_heads // 2, 2, columns)
        .transpose(1, 2)
        .reshape(rows, columns)
    )


def _num_bytes(info: TensorInfo) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.type_id)]
    if not info.shape or info.shape[-1] % block:
        raise ModelError(
            f"tensor {info.name} of shape {list(info.shape)} is not made of blocks of {block}"
        )
    return int(np.prod(info.shape, dtype=object)) // block * block_bytes


def _eos_token_ids(fields: Mapping[str, Value]) -> frozenset[int]:
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return frozenset(_integer(fields, name) for name in names if name in fields)


def _integer(fields: Mapping[str, Value], name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"GGUF field {name} is {value!r}, must be an integer")
    return value


def _number(fields: Mapping[str, Value], name: str, default: float | None = None) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"GGUF field {name} is {value!r}, must be a number")
    return float(value)
