"""What transformers says: the reference that the engine must equal.

Imports transformers, so import it late.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

TOP = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer: tokens, and at each of them the most likely ones with their logprobs."""

    tokens: list[int]
    top: list[list[tuple[int, float]]]

    @property
    def margin(self) -> float:
        """Least distance between the two most likely tokens: how near it came to parting."""
        return min(best[0][1] - best[1][1] for best in self.top)


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompt: list[int], num_tokens: int) -> Answer:
    """Greedy answer of transformers' own model, one prompt at a time, end tokens not heeded."""
    cache, inputs = None, torch.tensor([prompt])
    answer = Answer([], [])
    for _ in range(num_tokens):
        out = model(inputs, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logprobs = torch.log_softmax(out.logits[0, -1].float(), dim=-1)
        values, ids = logprobs.topk(TOP)
        answer.top.append(list(zip(ids.tolist(), values.tolist(), strict=True)))
        answer.tokens.append(int(logprobs.argmax()))
        inputs = torch.tensor([[answer.tokens[-1]]])
    return answer


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """A seeded Llama of 2 layers with GQA; wide weights keep its answers far from ties."""
    fields: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.35,
        "eos_token_id": 2,
    }
    torch.manual_seed(20)
    return _model(**(fields | changes))


def from_gguf(path: Path) -> LlamaForCausalLM:
    """transformers' model from a GGUF file, read by transformers' own code, in float32.

    Takes half a minute.
    """
    # Not from_pretrained: it wants the package accelerate for this, which does nothing here.
    read: Any = load_gguf_checkpoint
    model = _model(**read(str(path))["config"])
    loaded = read(str(path), return_tensors=True, model_to_load=model)
    weights = {name: torch.as_tensor(value).float() for name, value in loaded["tensors"].items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model


def _model(**fields: Any) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**fields))
    model.train(False)
    return model
