"""A small model with random weights in a folder, as a user's own model would lie there."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
ENDS = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path) -> None:
    """Write config, tokenizer and weights of the model into a new `folder`."""
    folder.mkdir(parents=True)
    vocab_size = _write_tokenizer(folder)
    ids = {"vocab_size": vocab_size, "bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
    (folder / "config.json").write_text(json.dumps(CONFIG | ids))
    _write_weights(folder, vocab_size)


def _write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer without merges; returns the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end, special=True) for end in ENDS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "bos_token": ENDS[0], "eos_token": ENDS[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def _write_weights(folder: Path, vocab_size: int) -> None:
    import torch
    from safetensors.torch import save_file

    hidden, middle = 64, 128
    kv = hidden // 2
    shapes = {"model.embed_tokens.weight": (vocab_size, hidden), "model.norm.weight": (hidden,)}
    for layer in range(2):
        name = f"model.layers.{layer}."
        shapes |= {
            name + "input_layernorm.weight": (hidden,),
            name + "post_attention_layernorm.weight": (hidden,),
            name + "self_attn.q_proj.weight": (hidden, hidden),
            name + "self_attn.k_proj.weight": (kv, hidden),
            name + "self_attn.v_proj.weight": (kv, hidden),
            name + "self_attn.o_proj.weight": (hidden, hidden),
            name + "mlp.gate_proj.weight": (middle, hidden),
            name + "mlp.up_proj.weight": (middle, hidden),
            name + "mlp.down_proj.weight": (hidden, middle),
        }
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"))
