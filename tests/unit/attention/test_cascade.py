"""Shared pages are read once, and what comes out is what the other back ends say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dopd.attention import choose, flashinfer_shape
from dopd.attention.base import BatchMeta, CascadeAttention
from dopd.attention.cascade import MIN_ROWS, MIN_TOKENS, num_shared, split
from dopd.attention.torch import TorchAttention
from dopd.engine.torch_batch import Span, lay_out
from dopd.errors import ConfigError
from tests.support.gpu import stub_flashinfer
from tests.support.gpu.stub_flashinfer import State

LAYERS, KV_HEADS, DIM = 2, 2, 64
SIZES = {"max_rows": 16, "max_row_pages": 64}


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[State]]:
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    with stub_flashinfer.installed() as state, torch.inference_mode():
        yield state


def rows_of(page_size: int, common: int, owns: list[int], last: list[int]) -> list[Span]:
    """Decode rows with `common` first pages and as many pages of their own, the last one filled
    with `last` tokens after the step. Page numbers are in no order."""
    numbers = list(range(common + sum(owns)))
    random.Random(common).shuffle(numbers)
    free = iter(numbers)
    prefix, rows = [next(free) for _ in range(common)], []
    for own, count in zip(owns, last, strict=True):
        pages = prefix + [next(free) for _ in range(own)]
        rows.append(Span((len(pages) - 1) * page_size + count - 1, 1, pages))
    return rows


def by_hand(meta: BatchMeta, page_size: int) -> int:
    """`num_shared`, row by row and page by page."""
    starts = meta.kv_indptr.tolist()[: meta.num_decode_rows + 1]
    rows = [meta.kv_indices[a:b].tolist()[:-1] for a, b in pairwise(starts)]
    count = 0
    while all(len(row) > count and row[count] == rows[0][count] for row in rows):
        count += 1
    is_worth_it = len(rows) >= 8 and count * page_size >= 256
    return count if is_worth_it else 0


def run(attention: Any, heads: int, meta: BatchMeta) -> list[Tensor]:
    """Plan, append, run; the same numbers each time."""
    generator = torch.Generator().manual_seed(5)
    attention.plan(meta)
    outs = []
    for layer in range(LAYERS):
        fused = torch.randn(len(meta.positions), heads + 2 * KV_HEADS, DIM, generator=generator)
        query, key, value = fused.split((heads, KV_HEADS, KV_HEADS), dim=1)
        attention.append(layer, key, value)
        outs.append(attention.run(layer, query))
    return outs


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, list[Span]]:
    """Page size and rows: decode rows around what the rule asks for, then perhaps prompts."""
    page_size = draw(st.sampled_from([16, 64, 100]))
    least = -(-MIN_TOKENS // page_size)
    common = draw(st.sampled_from([0, 1, least - 1, least, least + 1, least + 3]))
    rows = draw(st.integers(MIN_ROWS - 1, MIN_ROWS + 2))
    owns = draw(st.lists(st.integers(1, 3), min_size=rows, max_size=rows))
    last = draw(st.lists(st.integers(1, page_size), min_size=rows, max_size=rows))
    spans = rows_of(page_size, common, owns, last)
    if common > 1 and draw(st.booleans()):
        # One row left the others' way earlier.
        at, row = draw(st.integers(0, common - 1)), draw(st.integers(0, rows - 1))
        pages = [*spans[row].pages]
        pages[at] = common + sum(owns)
        spans[row] = spans[row]._replace(pages=pages)
    if draw(st.booleans()):
        pages = range(common + sum(owns) + 1, common + sum(owns) + 5)
        spans.append(Span(draw(st.integers(0, 9)), draw(st.integers(2, 30)), pages))
    return page_size, spans


# A row whose whole prompt is the prefix has a page of its own, with the token of this step.
WHOLE = (16, rows_of(16, 16, [1] * 8, [1] * 8))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(step=steps(), heads=st.sampled_from([2, 6, 8]))
@example(step=WHOLE, heads=6)
@example(step=(16, rows_of(16, 20, [1, 2, 3, 1, 1, 1, 1, 4], [16, 1, 7, 2, 16, 15, 1, 3])), heads=8)
def test_what_comes_out_is_what_the_others_say(
    double: type[State], step: tuple[int, list[Span]], heads: int
) -> None:
    page_size, spans = step
    meta = lay_out(spans, page_size)
    num_pages = int(meta.kv_indices.max()) + 1
    torch.manual_seed(1)
    pool = torch.randn(num_pages, LAYERS, 2, page_size, KV_HEADS, DIM)
    pools = [pool.clone() for _ in range(3)]
    back_end = choose.flashinfer()
    cascade = back_end.FlashInferCascade(pools[0], heads, **SIZES)
    plain = back_end.FlashInferAttention(pools[1], heads, **SIZES)
    expected_shared = by_hand(meta, page_size)
    assert num_shared(meta, page_size) == expected_shared
    assert cascade.shares(meta) == (expected_shared > 0)
    double.merges = 0
    found = run(cascade, heads, meta)
    # Merged where something is shared, and there only.
    assert double.merges == (LAYERS if expected_shared else 0)
    for others in (run(plain, heads, meta), run(TorchAttention(pools[2]), heads, meta)):
        for one, other in zip(found, others, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    assert torch.equal(pools[0], pools[1])


def test_shared_and_rest_are_the_whole() -> None:
    meta = lay_out(rows_of(16, 17, [1, 3] * 4, [1, 16] * 4), 16)
    found = split(meta, 16)
    assert found is not None and found.num_shared == 17
    assert found.indptr.dtype == found.indices.dtype == torch.int32
    for row in range(8):
        whole = meta.kv_indices[meta.kv_indptr[row] : meta.kv_indptr[row + 1]]
        rest = found.indices[found.indptr[row] : found.indptr[row + 1]]
        assert torch.equal(whole, torch.cat((meta.kv_indices[:17], rest)))


def test_steps_with_and_without_what_is_shared_take_turns(double: type[State]) -> None:
    """The plan of one leaves nothing to the next."""
    pool = torch.randn(64, LAYERS, 2, 16, KV_HEADS, DIM)
    cascade = choose.flashinfer().FlashInferCascade(pool.clone(), 6, **SIZES)
    plain = choose.flashinfer().FlashInferAttention(pool.clone(), 6, **SIZES)
    for common, expected in ((16, LAYERS), (3, 0), (18, LAYERS), (0, 0)):
        meta = lay_out(rows_of(16, common, [2] * 9, [5] * 9), 16)
        double.merges = 0
        for one, other in zip(run(cascade, 6, meta), run(plain, 6, meta), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
        assert double.merges == expected


def small_pool(dtype: torch.dtype = torch.bfloat16, dim: int = DIM) -> Tensor:
    return torch.zeros(1, 2, 2, 16, 1, dim, dtype=dtype)


@pytest.mark.parametrize("page_size", [1, 3, 16, 256])
def test_merge_is_probed_with_the_rest(page_size: int, double: type[State]) -> None:
    pool = torch.zeros(1, 2, 2, page_size, 2, DIM, dtype=torch.bfloat16)
    made = choose.make("flashinfer", pool, 6, cascade=True, **SIZES)
    assert isinstance(made, CascadeAttention)
    assert double.merges == LAYERS
    assert not pool.any()
    plain = choose.make("flashinfer", pool, 6, **SIZES)
    assert not isinstance(plain, CascadeAttention)


def test_merge_by_other_weights_is_an_error_at_the_start(
    double: type[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights to base e are the slip that is nearest."""
    right = stub_flashinfer.merge_state_in_place
    monkeypatch.setattr(
        stub_flashinfer,
        "merge_state_in_place",
        lambda v, s, other, weights: right(v, s.mul_(0.693147), other, weights * 0.693147),
    )
    with pytest.raises(ConfigError, match="computes wrong numbers"):
        choose.make("flashinfer", small_pool(), 6, cascade=True, **SIZES)


@pytest.mark.parametrize(("dim", "most"), [(64, 128), (128, 64), (256, 32)])
def test_more_heads_than_a_merge_has_threads_for_are_refused(dim: int, most: int) -> None:
    choose.make("flashinfer", small_pool(dim=dim), most, cascade=True, **SIZES)
    with pytest.raises(ConfigError, match=f"merges at most {most} heads of {dim}, the model has"):
        choose.make("flashinfer", small_pool(dim=dim), most + 1, cascade=True, **SIZES)


def test_torch_has_no_cascade_and_fixed_splits_neither() -> None:
    with pytest.raises(ConfigError, match="cascade-attention is of FlashInfer's"):
        choose.make("torch", small_pool(), 1, cascade=True, **SIZES)
    with pytest.raises(ValueError, match="no fixed split"):
        choose.make("flashinfer", small_pool(), 1, cascade=True, fixed_split=True, **SIZES)
