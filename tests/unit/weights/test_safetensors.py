"""Folders of safetensors: whole ones open, each kind of broken one is named for what it is."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dopd.errors import ModelError
from dopd.models.kernels import make_kernels
from dopd.models.llama import Llama
from dopd.weights.checkpoint import CPU, open_checkpoint
from tests.support import reference


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reference.tiny_llama().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Save the weights again with tensors replaced (`__` for a dot) or, for None, left out."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path)


def test_tensors_are_those_that_were_saved(folder: Path) -> None:
    saved = reference.tiny_llama().state_dict()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.shapes().keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(ModelError, match=r"no tensor model.layers.1.mlp.up_proj.weight"):
        open_checkpoint(folder)


def test_wrong_shape_is_named(folder: Path) -> None:
    rewrite(folder, model__norm__weight=torch.ones(7))
    with pytest.raises(ModelError, match=r"model.norm.weight has shape \[7\].*asks for \[96\]"):
        open_checkpoint(folder)


def test_wrong_dtype_is_named(folder: Path) -> None:
    rewrite(folder, model__norm__weight=torch.ones(96, dtype=torch.int8))
    with pytest.raises(ModelError, match=r"model.norm.weight in model.safetensors has dtype I8"):
        open_checkpoint(folder)


def test_tensor_that_would_be_left_out_is_named(folder: Path) -> None:
    rewrite(folder, model__layers__0__self_attn__q_proj__bias=torch.ones(96))
    with pytest.raises(ModelError, match=r"q_proj.bias that this architecture does not use"):
        open_checkpoint(folder)


def test_frequencies_and_tied_head_of_old_exports_are_ignored(tmp_path: Path) -> None:
    model = reference.tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    rewrite(tmp_path, lm_head__weight=torch.ones(320, 96))
    assert open_checkpoint(tmp_path).config.tie_embeddings


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_cut_file_is_refused(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model.safetensors of .* bytes is broken or cut off"):
        open_checkpoint(folder)


def test_shard_that_the_index_names_must_exist(tmp_path: Path) -> None:
    reference.tiny_llama().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"weight file .*{shard.name} is missing"):
        open_checkpoint(tmp_path)


def test_index_cannot_lead_out_of_the_folder(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"not in the folder itself"):
        open_checkpoint(folder)


def test_pickled_weights_are_refused_unopened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        open_checkpoint(folder)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"holds no \*.safetensors and no \*.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a file but no .gguf"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_fp8_is_refused_with_file_and_dtype(folder: Path) -> None:
    fp8 = torch.ones(96).to(torch.float8_e4m3fn)
    rewrite(folder, model__norm__weight=fp8)
    with pytest.raises(ModelError, match=r"model.norm.weight in model.safetensors .* F8_E4M3"):
        open_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "fp8", "fmt": "e4m3"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    said = r"config.json: model config: quantization_config says fp8 \(e4m3\), which is not"
    with pytest.raises(ModelError, match=said):
        open_checkpoint(folder)


def test_the_host_never_holds_the_model_twice(folder: Path) -> None:
    """What was placed in another dtype, as on a GPU, is let go before the next is read."""
    checkpoint, alive = open_checkpoint(folder), list[weakref.ref[torch.Tensor]]()
    read = checkpoint.tensor

    def tensor(name: str) -> torch.Tensor:
        assert not [one for one in alive if one() is not None], f"held while {name} is read"
        found = read(name)
        alive.append(weakref.ref(found))
        return found

    checkpoint.tensor = tensor  # type: ignore[method-assign]
    kernels = make_kernels("torch", checkpoint.config, 256, torch.bfloat16, CPU)
    Llama(checkpoint, kernels, torch.bfloat16, CPU, lambda share, num_bytes: None)
    assert len(alive) == len(checkpoint.shapes())
