"""GGUF files: a tiny Llama written by the `gguf` package is read back tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from dopd.engine.load import load
from dopd.errors import ModelError
from dopd.weights.checkpoint import open_checkpoint
from dopd.weights.config import RopeScaling
from dopd.weights.gguf import GLOBAL_NAMES, LAYER_NAMES
from dopd.weights.gguf_header import read_header
from tests.support import reference, stepping

Types = gguf.GGMLQuantizationType
HEADS = {"q_proj": 6, "k_proj": 2}


def interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Rows as llama.cpp's converter orders them: halves of each head become pairs."""
    rows, columns = weight.shape
    return (
        weight.view(num_heads, 2, rows // num_heads // 2, columns)
        .transpose(1, 2)
        .reshape(rows, columns)
    )


def file_name(name: str) -> str:
    """Name in a GGUF file of a tensor of transformers."""
    for theirs, ours in GLOBAL_NAMES.items():
        if ours == name:
            return theirs
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    theirs = {ours: theirs for theirs, ours in LAYER_NAMES.items()}[rest.removesuffix(".weight")]
    return f"blk.{layer}.{theirs}.weight"


def write(path: Path, kind: Types = Types.F32, **fields: Any) -> dict[str, Tensor]:
    """Write the tiny Llama; returns its tensors as they must be read back."""
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    sizes = {
        "block_count": 2, "context_length": 256, "embedding_length": 96, "feed_forward_length": 96,
        "attention.head_count": 6, "attention.head_count_kv": 2,
    }  # fmt: skip
    for name, value in sizes.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(320)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 320)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 9)
    for name, value in fields.pop("more", {}).items():
        writer.add_float32(name, value) if isinstance(value, float) else writer.add_string(
            name, value
        )
    expected = {}
    for name, tensor in reference.tiny_llama().state_dict().items():
        own = next((heads for part, heads in HEADS.items() if part in name), None)
        stored = tensor if own is None else interleave(tensor, own)
        as_kind = kind if tensor.ndim == 2 else Types.F32
        packed = quantize(stored.numpy(), as_kind)
        writer.add_tensor(file_name(name), packed, raw_dtype=as_kind)
        # What is left of a row after quantisation does not depend on where the row stands.
        expected[name] = torch.from_numpy(dequantize(quantize(tensor.numpy(), as_kind), as_kind))
    for name, values in fields.items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize(
    "kind", [Types.F32, Types.F16, Types.BF16, Types.Q8_0, Types.Q4_1, Types.Q4_0]
)
def test_tensors_are_those_that_were_written(tmp_path: Path, kind: Types) -> None:
    expected = write(tmp_path / "tiny.gguf", kind)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.shapes().keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(checkpoint.tensor(name), tensor, rtol=0, atol=0)


def test_config_comes_from_the_header(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    config = open_checkpoint(tmp_path).config
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (320, 96, 2)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (6, 2, 16)
    assert (config.max_positions, config.rope_theta, config.tie_embeddings) == (
        256,
        10_000.0,
        False,
    )
    assert config.rms_norm_eps == pytest.approx(1e-6)
    assert config.eos_token_ids == {2, 9}
    assert config.rope_scaling is None


def test_rope_factors_and_linear_scaling(tmp_path: Path) -> None:
    write(tmp_path / "factors.gguf", **{"rope_freqs.weight": [1.0, 2, 3, 4, 5, 6, 7, 8]})
    factors = open_checkpoint(tmp_path / "factors.gguf").config.rope_scaling
    assert factors == RopeScaling("factors", factors=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))
    more = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write(tmp_path / "linear.gguf", more=more)
    assert open_checkpoint(tmp_path / "linear.gguf").config.rope_scaling == RopeScaling(
        "linear", 4.0
    )


def test_answers_equal_those_of_the_same_model_in_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    reference.tiny_llama().save_pretrained(tmp_path / "folder")
    answers = []
    for path in (tmp_path / "tiny.gguf", tmp_path / "folder"):
        engine = load(path, dtype="float32", device="cpu", kv_memory="2MiB")
        answers.append(stepping.run(engine, stepping.start(engine, [[5, 9, 300]], 20), 20))
    assert answers[0] == answers[1]


def test_cut_file_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path)
    whole = path.read_bytes()
    last = max(read_header(path).tensors.values(), key=lambda info: info.offset)
    path.write_bytes(whole[: last.offset + 1])
    with pytest.raises(ModelError, match=f"cut off: tensor {last.name} ends at byte"):
        open_checkpoint(path)


def test_file_cut_anywhere_in_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path)
    whole = path.read_bytes()
    end = min(info.offset for info in read_header(path).tensors.values())
    for kept in [*range(0, 64), *range(64, end - 32, 97)]:
        path.write_bytes(whole[:kept])
        with pytest.raises(ModelError):
            open_checkpoint(path)


def test_header_with_any_byte_changed_opens_or_is_refused(tmp_path: Path) -> None:
    """However wrong a header is, it ends in ModelError and never in another error."""
    path = tmp_path / "tiny.gguf"
    write(path)
    whole = path.read_bytes()
    end = min(info.offset for info in read_header(path).tensors.values())
    for at in range(4, end, 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            open_checkpoint(path)
        except ModelError:
            continue


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3' is not supported"),
        ({"more": {"llama.rope.scaling.type": "yarn"}}, "rope scaling 'yarn' is not supported"),
        ({"blk.0.attn_q.bias": [1.0] * 96}, "self_attn.q_proj.bias that this architecture"),
        ({"blk.0.attn_q_norm.weight": [1.0] * 16}, "attn_q_norm.weight that this architecture"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    write(tmp_path / "tiny.gguf", **fields)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_unknown_quantisation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path)
    info = read_header(path).tensors["blk.0.attn_q.weight"]
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(info.name) + 4 + 8 * len(info.shape)
    data[at : at + 4] = (16).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(
        ModelError, match=r"tensor blk.0.attn_q.weight has type IQ2_XXS; supported:"
    ):
        open_checkpoint(path)
