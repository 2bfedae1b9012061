"""Draws where the logits lie: those of the CPU's sampler, and little is copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dopd.attention import choose
from dopd.engine import device_sampler
from dopd.engine.device_sampler import sample_on_device, sample_where_it_lies
from dopd.engine.sampler import Draw, sample
from dopd.errors import DopdError
from dopd.layers.kernels import Kernels, TorchKernels
from dopd.layers.rope import Rope
from dopd.types import History, LogitAdjustments, Sampled, SamplingParams
from tests.support.cases import cases
from tests.support.gpu import stub_flashinfer

VOCAB = 512
CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10 * VOCAB},
    {"top_p": 0.3},
    {"top_p": 1e-9},
    {"top_p": 0.97, "top_k": 40},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"min_p": 0.05, "top_p": 0.6},
    {"min_p": 0.01, "top_k": 5, "top_p": 0.5},
]


@pytest.fixture(params=["torch", "flashinfer"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """torch's, and FlashInfer's over its double."""
    rope = Rope(torch.ones(4), 8)
    if request.param == "torch":
        yield TorchKernels(rope, torch.float32, CPU)
        return
    with stub_flashinfer.installed():
        yield choose.flashinfer().FlashInferKernels(rope.cos, rope.sin, 1, CPU)


def logits_of(rows: int, seed: int = 4) -> Tensor:
    return torch.randn((rows, VOCAB), generator=torch.Generator().manual_seed(seed)) * 3


def assert_alike(found: list[Sampled | Exception], expected: list[Sampled | Exception]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Sampled) and isinstance(other, Sampled)
        assert one.token == other.token
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert one.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-5)
            ids, values = ([pair[at] for pair in one.logprobs.top] for at in (0, 1))
            assert ids == [token for token, _ in other.logprobs.top]
            assert values == pytest.approx([value for _, value in other.logprobs.top], abs=1e-5)


def test_every_way_to_draw_in_one_batch(kernels: Kernels) -> None:
    draws = [Draw(GREEDY, 0), Draw(SamplingParams(temperature=1e-9, top_logprobs=0), 1)]
    for seed, filters in enumerate(FILTERS):
        for temperature in (0.3, 1.0, 2.5):
            top = [None, 0, 3, 200][seed % 4]
            params = SamplingParams(
                temperature=temperature, seed=seed, choice=seed % 3, top_logprobs=top, **filters
            )
            draws += [Draw(params, pos) for pos in range(8)]
    logits = logits_of(len(draws))
    assert_alike(sample_on_device(logits, draws, kernels), sample(logits, draws))


def test_top_p_is_a_share_of_what_min_p_left(kernels: Kernels) -> None:
    draws = [Draw(SamplingParams(min_p=0.2, top_p=0.6, seed=3), pos) for pos in range(40)]
    logits = logits_of(1).expand(len(draws), -1).contiguous()
    assert_alike(sample_on_device(logits, draws, kernels), sample(logits, draws))


def test_slices_change_nothing(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = [Draw(SamplingParams(top_p=0.8, seed=i, top_logprobs=2), i) for i in range(11)]
    logits = logits_of(len(draws))
    whole = sample_on_device(logits, draws, kernels)
    monkeypatch.setattr(device_sampler, "DRAWN_AT_ONCE", 3 * VOCAB)
    assert sample_on_device(logits, draws, kernels) == whole
    monkeypatch.setattr(device_sampler, "DRAWN_AT_ONCE", 1)
    assert sample_on_device(logits, draws, kernels) == whole


@cases(40)
@given(
    st.integers(2, 60),
    st.sampled_from([0.0, 0.01, 1.0, 8.0]),
    st.floats(1e-6, 1.0),
    st.integers(0, 70),
    st.integers(0, 1 << 20),
)
def test_torch_keeps_what_the_cpu_keeps(
    vocab: int, spread: float, share: float, count: int, seed: int
) -> None:
    """Equals at the border, too: the lowest ids stay."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, vocab, generator=generator) * spread).round(decimals=1).double()
    probabilities = torch.softmax(logits, dim=-1)
    kernels = TorchKernels(Rope(torch.ones(4), 8), torch.float32, CPU)
    kept = kernels.keep_top(probabilities, [0, count, count], [share, 1.0, share])
    for row, k, p in zip(range(3), (0, count, count), (share, 1.0, share), strict=True):
        values, ids = probabilities[row].sort(descending=True, stable=True)
        values = values[: k or vocab]
        num = int((values.cumsum(dim=-1) < p * values.sum()).sum()) + 1 if p < 1 else len(values)
        assert kept[row].nonzero().squeeze(1).tolist() == ids[:num].sort().values.tolist()


def test_broken_rows_fail_alone(kernels: Kernels) -> None:
    draws = [Draw(SamplingParams(seed=i, top_p=0.9, top_logprobs=1), i) for i in range(4)]
    draws.append(Draw(GREEDY, 0))
    logits = logits_of(5)
    logits[1, 77], logits[2, 5], logits[4, 9] = float("nan"), float("inf"), float("nan")
    found = sample_on_device(logits, draws, kernels)
    expected = sample(logits, draws)
    for row in (1, 2, 4):
        assert isinstance(found[row], DopdError)
        assert str(found[row]) == str(expected[row])
    assert_alike([found[0], found[3]], [expected[0], expected[3]])


class Copies:
    """How many numbers went to the host, call by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        for name in ("cpu", "tolist", "item", "numpy"):
            monkeypatch.setattr(Tensor, name, self.counted(getattr(Tensor, name)))

    def counted(self, function: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **named: Any) -> Any:
            self.sizes.append(tensor.numel())
            return function(tensor, *args, **named)

        return call


def test_logits_stay_where_they_are(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = [Draw(GREEDY, 0), Draw(SamplingParams(top_k=5), 3), Draw(SamplingParams(), 1)]
    draws.append(Draw(SamplingParams(top_logprobs=4, temperature=0.0), 2))
    logits = logits_of(4)
    copies = Copies(monkeypatch)
    sample_on_device(logits, draws, kernels)
    # Largest logit and token of each row; then the log probabilities of one: 1 + 4 + 4 numbers.
    assert copies.sizes == [2 * 4, 9]


def test_only_adjusted_rows_are_copied(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    penalty = LogitAdjustments(presence_penalty=2.0, bias=((7, 50.0),))
    draws = [
        Draw(GREEDY, 0),
        Draw(GREEDY, 2, history=History(penalty, [1, 2], [3, 4])),
        Draw(SamplingParams(seed=3), 1),
        Draw(
            SamplingParams(seed=4, top_k=2), 1, forbidden=frozenset({int(logits_of(4)[3].argmax())})
        ),
    ]
    logits = logits_of(4)
    expected = sample(logits, draws)
    copied: list[int] = []
    real = Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        copied.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    assert_alike(sample_on_device(logits, draws, kernels), expected)
    # The CPU's sampler asks for its own copy once more, of what is there.
    assert copied == [2 * VOCAB, 2 * VOCAB]


def test_on_a_cpu_it_is_the_cpus_sampler(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_sampler, "sample_on_device", None)
    draws = [Draw(SamplingParams(seed=2, top_p=0.9, top_logprobs=2), 0)]
    assert sample_where_it_lies(logits_of(1), draws, kernels) == sample(logits_of(1), draws)


def test_a_share_that_is_met_exactly_takes_no_more(kernels: Kernels) -> None:
    chances = torch.tensor([[0.25, 0.5, 0.125, 0.125]], dtype=torch.float64)
    kept = [kernels.keep_top(chances, [0], [share]) > 0 for share in (0.5, 0.75)]
    assert kept[0].tolist() == [[False, True, False, False]]
    assert kept[1].tolist() == [[True, True, False, False]]
