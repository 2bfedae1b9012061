"""What a Llama-family model is: the facts of its config.json, checked, in our own words.

Anything that would change the output and is not supported is refused here, with the field's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dopd.errors import ModelError

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_TYPES = ("default", "linear", "llama3")

# A model's sizes come from a file that somebody else wrote: bounds keep a broken or hostile one
# from asking for the machine's memory before the weights are looked at. They are far above any
# known model.
MAX_VOCAB_SIZE = 4_000_000
MAX_WIDTH = 1_000_000
MAX_LAYERS = 1_000
MAX_HEADS = 1_024
MAX_HEAD_DIM = 1_024
MAX_POSITIONS = 1 << 24
MAX_JSON_BYTES = 16 << 20

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    kind: "linear" (all by 1 / factor), "llama3" (only the slow ones, smoothly), or "factors"
        (GGUF: one divisor per frequency, computed by who wrote the file).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and constants of one Llama-family model. Counts are per whole model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    eos_token_ids: frozenset[int]

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, whoever filled the record."""
        for name, value, top in (
            ("vocab_size", self.vocab_size, MAX_VOCAB_SIZE),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_heads, MAX_HEADS),
            ("num_key_value_heads", self.num_kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("max_position_embeddings", self.max_positions, MAX_POSITIONS),
        ):
            if not 1 <= value <= top:
                raise ModelError(f"model config: {name} is {value}, must be 1 to {top}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"model config: num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"model config: head_dim is {self.head_dim}, must be even")
        for name, real in (("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)):
            if not (math.isfinite(real) and real > 0):
                raise ModelError(f"model config: {name} is {real}, must be positive")
        for token in self.eos_token_ids:
            if not 0 <= token < self.vocab_size:
                raise ModelError(
                    f"model config: eos token {token} is outside the vocabulary ({self.vocab_size})"
                )


def read_json(path: Path) -> Fields:
    """The object in a JSON file. Raises ModelError if it is missing, too large or no object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return value


def from_folder(folder: Path) -> ModelConfig:
    """Config of a model folder: config.json, and generation_config.json's end tokens if any."""
    fields = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    eos = _token_ids(fields, "eos_token_id")
    if generation.exists():
        eos |= _token_ids(read_json(generation), "eos_token_id")
    try:
        return from_fields(fields, eos)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error


def from_fields(fields: Fields, eos_token_ids: frozenset[int]) -> ModelConfig:
    """Config from the fields of a config.json of transformers 4 or 5."""
    _refuse_unsupported(fields)
    hidden_size = _integer(fields, "hidden_size")
    num_heads = _integer(fields, "num_attention_heads")
    if fields.get("head_dim") is None and (num_heads < 1 or hidden_size % num_heads):
        raise ModelError(
            f"model config: hidden_size {hidden_size} is not a multiple of "
            f"num_attention_heads {num_heads}"
        )
    rope = _rope_fields(fields)
    return ModelConfig(
        vocab_size=_integer(fields, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(fields, "intermediate_size"),
        num_layers=_integer(fields, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(fields, "num_key_value_heads", num_heads),
        head_dim=_integer(fields, "head_dim", hidden_size // max(num_heads, 1)),
        max_positions=_integer(fields, "max_position_embeddings", 2048),
        rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
        rope_theta=_number(rope, "rope_theta", _number(fields, "rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(rope),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        eos_token_ids=eos_token_ids,
    )


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse a config whose model would compute something else than our forward does."""
    architectures = fields.get("architectures") or ["(none)"]
    name = architectures[0] if isinstance(architectures, list) else architectures
    if name not in ARCHITECTURES:
        raise ModelError(
            f"model architecture {name} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    wanted: dict[str, tuple[object, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1.0,),
    }
    for field, values in wanted.items():
        if fields.get(field) is not None and fields[field] not in values:
            raise ModelError(
                f"model config: {field} {fields[field]!r} is not supported; "
                f"supported: {values[0]!r}"
            )
    if quantisation := fields.get("quantization_config"):
        raise ModelError(
            f"model config: quantization_config says {_quantisation(quantisation)}, which is not "
            "supported; use the unquantised model (bfloat16, float16 or float32) or a GGUF file"
        )


def _quantisation(told: object) -> str:
    """Method and number format, as far as a file tells them: "fp8 (e4m3)"."""
    if not isinstance(told, dict):
        return "that weights are quantised"
    method = str(told.get("quant_method", "an unnamed method"))
    kind = told.get("fmt") or told.get("activation_scheme") or told.get("bits")
    return f"{method} ({kind})" if kind else method


def _rope_fields(fields: Fields) -> Fields:
    """The rope settings: `rope_parameters` (transformers 5) or `rope_scaling` (before)."""
    for name in ("rope_parameters", "rope_scaling"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ModelError(f"model config: {name} is no object")
        return value
    return {}


def _rope_scaling(rope: Fields) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ModelError(
            f"model config: rope type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    if _number(rope, "partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("model config: partial_rotary_factor is not supported")
    if kind == "default":
        return None
    factor = _number(rope, "factor")
    if not (math.isfinite(factor) and factor >= 1.0):
        raise ModelError(f"model config: rope factor is {factor}, must be at least 1")
    if kind == "linear":
        return RopeScaling("linear", factor)
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    original = _integer(rope, "original_max_position_embeddings")
    if not 0 < low < high < math.inf or original < 1:
        raise ModelError(
            f"model config: llama3 rope needs 0 < low_freq_factor < high_freq_factor and a "
            f"positive original_max_position_embeddings, got {low}, {high}, {original}"
        )
    return RopeScaling("llama3", factor, low, high, original)


def _integer(fields: Fields, name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"model config: {name} is {value!r}, must be an integer")
    return value


def _number(fields: Fields, name: str, default: float | None = None) -> float:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"model config: {name} is {value!r}, must be a number")
    return float(value)


def _token_ids(fields: Fields, name: str) -> frozenset[int]:
    """A token id, a list of them, or none."""
    value = fields.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int):
            raise ModelError(f"model config: {name} is {value!r}, must be token ids")
    return frozenset(values)
