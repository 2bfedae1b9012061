"""A whole model through FlashInfer's calls, computed by their double: tokens equal torch's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dopd.attention import choose, flashinfer_shape
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.errors import ConfigError
from tests.support import reference, stepping
from tests.support.gpu import stub_flashinfer
from tests.support.gpu.stub_flashinfer import State

NUM_TOKENS = 20
PROMPTS = [[5, 9, 300, 7], [1], list(range(40, 140)), [17] * 33, [2, 4, 8, 16] * 6]
# Query and KV heads; groups of 3 as SmolLM2 has, and two that need tensor cores.
HEADS = [(6, 2), (5, 1), (8, 1)]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[State]]:
    """The double is there, computes on the CPU, and in float32."""

    def chosen(asked: str, device: torch.device) -> str:
        return choose.FLASHINFER if asked == choose.FLASHINFER else choose.TORCH

    monkeypatch.setattr(choose, "choose", chosen)
    monkeypatch.setattr(flashinfer_shape, "DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    with stub_flashinfer.installed() as state:
        yield state


def load_tiny(folder: Path, attention: str, page_size: int = 16) -> TorchEngine:
    return load(
        folder,
        dtype="float32",
        device="cpu",
        kv_memory="16MiB",
        attention=attention,
        page_size=page_size,
    )


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_tokens_are_those_of_torch(
    heads: int, kv_heads: int, tmp_path: Path, double: type[State]
) -> None:
    changes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64}
    if 96 % heads:
        changes["hidden_size"] = 80
    model = reference.tiny_llama(**changes)
    model.save_pretrained(tmp_path)
    expected = [reference.greedy(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    assert min(answer.margin for answer in expected) > 1e-3
    for page_size, budget in ((16, stepping.UNBOUNDED), (16, 7), (1, 23)):
        engine = load_tiny(tmp_path, choose.FLASHINFER, page_size)
        double.plans.clear()
        running = stepping.start(engine, PROMPTS, NUM_TOKENS)
        found = stepping.run(engine, running, NUM_TOKENS, budget)
        assert found == [answer.tokens for answer in expected]
        # Mixed steps are planned in two parts, and each step once.
        assert {"decode", "prefill"} <= set(double.plans)
    plain = load_tiny(tmp_path, choose.TORCH)
    running = stepping.start(plain, PROMPTS, NUM_TOKENS)
    assert stepping.run(plain, running, NUM_TOKENS, 7) == found


def test_pages_move_between_the_back_ends(tmp_path: Path, double: type[State]) -> None:
    """What one wrote the other reads: a hand-off between workers that chose differently."""
    reference.tiny_llama(head_dim=64).save_pretrained(tmp_path)
    ends = {name: load_tiny(tmp_path, name) for name in (choose.TORCH, choose.FLASHINFER)}
    alone = stepping.start(ends[choose.TORCH], PROMPTS, NUM_TOKENS)
    expected = stepping.run(ends[choose.TORCH], alone, NUM_TOKENS)
    for source, target in ((choose.TORCH, choose.FLASHINFER), (choose.FLASHINFER, choose.TORCH)):
        running = stepping.start(ends[source], PROMPTS, NUM_TOKENS)
        stepping.run(ends[source], running, 3, budget=16)
        ends[target].pool.tensor.copy_(ends[source].pool.tensor)
        assert stepping.run(ends[target], running, NUM_TOKENS) == expected


def test_float32_on_flashinfer_is_refused_before_it_computes(
    tmp_path: Path, double: type[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with stub_flashinfer.installed():
        reference.tiny_llama(head_dim=64).save_pretrained(tmp_path)
        monkeypatch.setattr(choose, "choose", lambda asked, device: choose.FLASHINFER)
        with pytest.raises(ConfigError, match="cannot compute in float32"):
            load_tiny(tmp_path, choose.FLASHINFER)
    assert not double.plans


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("rmsnorm", "rms norm"),
        ("fused_add_rmsnorm", "sum and norm"),
        ("apply_rope_with_cos_sin_cache_inplace", "rotation"),
        ("silu_and_mul", "silu-mul"),
        ("top_k_renorm_probs", "top-k and top-p"),
        ("top_p_renorm_probs", "top-k and top-p"),
    ],
)
def test_each_kernel_is_probed_before_it_is_used(
    name: str, word: str, tmp_path: Path, double: type[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **named: object) -> None:
        raise RuntimeError("no kernel image")

    reference.tiny_llama(head_dim=64).save_pretrained(tmp_path)
    monkeypatch.setattr(stub_flashinfer, name, fails)
    with pytest.raises(ConfigError, match=f"FlashInfer's {word} does not run on cpu.*no kernel"):
        load_tiny(tmp_path, choose.FLASHINFER)


def test_kernel_that_is_off_is_refused(
    tmp_path: Path, double: type[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = stub_flashinfer.silu_and_mul
    reference.tiny_llama(head_dim=64).save_pretrained(tmp_path)
    monkeypatch.setattr(stub_flashinfer, "silu_and_mul", lambda x: right(x) * 1.5)
    with pytest.raises(ConfigError, match="FlashInfer's silu-mul computes wrong numbers"):
        load_tiny(tmp_path, choose.FLASHINFER)
