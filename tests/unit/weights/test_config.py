"""config.json of the Llama family: what is read, and that nothing unsupported passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dopd.errors import ModelError
from dopd.weights.config import RopeScaling, from_fields, from_folder

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def read(**changes: Any) -> Any:
    return from_fields(BASE | changes, frozenset())


def test_sizes_and_constants() -> None:
    config = read()
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.rope_theta, config.rms_norm_eps) == (500000.0, 1e-5)
    assert config.rope_scaling is None
    assert not config.tie_embeddings


def test_defaults_of_older_configs() -> None:
    fields = {
        name: value
        for name, value in BASE.items()
        if name not in ("num_key_value_heads", "rope_theta")
    }
    config = from_fields(fields, frozenset())
    assert (config.num_kv_heads, config.rope_theta) == (4, 10_000.0)


def test_head_dim_may_differ_from_the_quotient() -> None:
    assert read(head_dim=32).head_dim == 32


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_rope_settings_of_both_generations(field: str) -> None:
    assert read(**{field: LLAMA3}).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 128)
    assert read(**{field: {"type": "linear", "factor": 2}}).rope_scaling == RopeScaling(
        "linear", 2.0
    )
    assert read(**{field: {"rope_type": "default", "rope_theta": 7.0}}).rope_scaling is None


def test_newer_theta_wins() -> None:
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope_theta == 7.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architecture Qwen2ForCausalLM is not supported"),
        ({"architectures": None}, r"architecture \(none\) is not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported; supported: False"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, r"says an unnamed method \(4\), which is not"),
        ({"quantization_config": "x"}, "says that weights are quantised, which is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None, must be a number"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
            "factor is 0.5, must be at least 1",
        ),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "low_freq_factor < high_freq_factor",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is no object"),
        ({"hidden_size": None}, "hidden_size is None, must be an integer"),
        ({"hidden_size": "64"}, "hidden_size is '64', must be an integer"),
        ({"hidden_size": 65}, "hidden_size 65 is not a multiple"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, must be 1 to 1000"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"head_dim": 15}, "head_dim is 15, must be even"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**changes)


def test_end_tokens_of_both_files_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"eos_token_id": 3}))
    assert from_folder(tmp_path).eos_token_ids == {3}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    assert from_folder(tmp_path).eos_token_ids == {3, 7}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 100}))
    with pytest.raises(ModelError, match=r"eos token 100 is outside the vocabulary \(100\)"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*config.json: No such file"),
        ("{", "is no JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        from_folder(tmp_path)
