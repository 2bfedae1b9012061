"""One interface over the kinds of model on disk; checks that nothing is missing or misshapen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dopd.errors import ModelError
from dopd.weights import made_up
from dopd.weights.config import ModelConfig
from dopd.weights.hash import weight_files

CPU = torch.device("cpu")


class Checkpoint(Protocol):
    """A model's config and tensors under the names and shapes of transformers' Llama."""

    config: ModelConfig

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor, from headers only."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU in a floating dtype; the caller owns it.

        Raises ModelError if it cannot be read.
        """
        ...


def open_checkpoint(model: str | Path, device: torch.device = CPU) -> Checkpoint:
    """Open a folder of safetensors, a folder with one GGUF file, or a GGUF file, and check it; or
    make up a model (`made_up`) on this device."""
    # Imported here as below: it knows the shapes that are expected.
    if made := made_up.parse(model):
        from dopd.weights.random import RandomCheckpoint

        return RandomCheckpoint(made, device)
    path = Path(model)
    if not path.exists():
        raise ModelError(f"model {path} does not exist")
    files = weight_files(path)
    if not files:
        raise ModelError(_no_weights(path))
    # Imported here: a GGUF model needs no safetensors package, and the other way round.
    checkpoint: Checkpoint
    if files[0].suffix == ".gguf":
        from dopd.weights.gguf import GgufCheckpoint

        if len(files) > 1:
            raise ModelError(
                f"model folder {path} holds {len(files)} GGUF files; name the one to load"
            )
        checkpoint = GgufCheckpoint(files[0])
    elif path.is_file():
        raise ModelError(
            f"model {path} is a file but no .gguf; name the folder of a safetensors model"
        )
    else:
        from dopd.weights.safetensors import SafetensorsCheckpoint

        checkpoint = SafetensorsCheckpoint(path)
    check_shapes(checkpoint)
    return checkpoint


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model must have, with its shape ([out, in] for matrices)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (q_size, hidden),
            layer + "self_attn.k_proj.weight": (kv_size, hidden),
            layer + "self_attn.v_proj.weight": (kv_size, hidden),
            layer + "self_attn.o_proj.weight": (hidden, q_size),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes


def check_shapes(checkpoint: Checkpoint) -> None:
    """Raise ModelError, naming the tensor, unless the checkpoint holds what its config says, and
    nothing else.

    A tensor too many is refused because it is how an unsupported part (a bias, a norm) shows
    itself.
    """
    found, expected = checkpoint.shapes(), expected_shapes(checkpoint.config)
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"model has no tensor {name}; its config asks for shape {list(shape)}")
        if found[name] != shape:
            raise ModelError(
                f"tensor {name} has shape {list(found[name])}, the config asks for {list(shape)}"
            )
    for name in found:
        if name not in expected and not _is_harmless(name):
            raise ModelError(f"model has a tensor {name} that this architecture does not use")


def _is_harmless(name: str) -> bool:
    # Old exports carry rope's frequencies, which follow from the config, and the output head of
    # tied models.
    return name.endswith(".rotary_emb.inv_freq") or name == "lm_head.weight"


def _no_weights(path: Path) -> str:
    pickled = sorted(file.name for file in path.glob("*.bin")) + sorted(
        file.name for file in path.glob("*.pt*")
    )
    if pickled:
        return (
            f"model folder {path} holds only pickled weights ({pickled[0]}), which can run code "
            "when opened and are not read; convert it to safetensors"
        )
    return f"model folder {path} holds no *.safetensors and no *.gguf file"
