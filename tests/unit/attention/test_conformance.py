"""Every attention back end against a naive softmax in float32, through the same steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dopd.attention import choose
from dopd.attention.base import Attention
from dopd.engine.torch_batch import lay_out, span_of
from dopd.types import Row, SamplingParams
from tests.support.gpu import real_flashinfer, stub_flashinfer

NUM_LAYERS = 3
HEAD_DIM = 64
NUM_KV_HEADS = 2


@dataclass(frozen=True)
class BackEnd:
    """How to make a back end over a pool, where it runs, and how exact it is.

    make: of a pool, the number of query heads, the longest row in pages.
    """

    make: Callable[[Tensor, int, int], Attention]
    device: str
    dtype: torch.dtype
    tolerance: float
    library: Callable[[], AbstractContextManager[object]] = nullcontext


def make_torch(pool: Tensor, num_heads: int, row_pages: int) -> Attention:
    return choose.make(choose.TORCH, pool, num_heads, max_rows=8, max_row_pages=row_pages)


def make(pool: Tensor, num_heads: int, row_pages: int, kind: str = "", **options: Any) -> Attention:
    """Without the check for kernels: the double computes in float32, too."""
    back_end = getattr(choose.flashinfer(), kind or "FlashInferAttention")
    made: Attention = back_end(pool, num_heads, max_rows=8, max_row_pages=row_pages, **options)
    return made


TORCH, FLASHINFER = make_torch, make
FIXED_SPLIT = partial(make, fixed_split=True)
CASCADE = partial(make, kind="FlashInferCascade")
DOUBLE = stub_flashinfer.installed
REAL = real_flashinfer.require
BACK_ENDS = {
    "torch-float32": BackEnd(TORCH, "cpu", torch.float32, 1e-5),
    "torch-bfloat16": BackEnd(TORCH, "cpu", torch.bfloat16, 2e-2),
    "double-float32": BackEnd(FLASHINFER, "cpu", torch.float32, 1e-5, DOUBLE),
    "double-bfloat16": BackEnd(FLASHINFER, "cpu", torch.bfloat16, 2e-2, DOUBLE),
    "double-fixed-split": BackEnd(FIXED_SPLIT, "cpu", torch.float32, 1e-5, DOUBLE),
    "double-cascade": BackEnd(CASCADE, "cpu", torch.float32, 1e-5, DOUBLE),
    "flashinfer-bfloat16": BackEnd(
        FLASHINFER, "cuda", torch.bfloat16, 2e-2, real_flashinfer.require
    ),
    "flashinfer-float16": BackEnd(FLASHINFER, "cuda", torch.float16, 5e-3, REAL),
    "flashinfer-fixed-split": BackEnd(
        FIXED_SPLIT, "cuda", torch.bfloat16, 2e-2, real_flashinfer.require
    ),
    "flashinfer-cascade": BackEnd(CASCADE, "cuda", torch.bfloat16, 2e-2, REAL),
}


@dataclass
class Sequence:
    """A sequence and all that was ever appended to it, per layer: what its pages must hold."""

    pages: list[int]
    length: int = 0
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Bench:
    """A back end over a pool of stale garbage, beside dense copies of what it was given."""

    def __init__(self, end: BackEnd, groups: int, page_size: int, max_len: int, count: int) -> None:
        self.end, self.num_heads = end, groups * NUM_KV_HEADS
        self.page_size = page_size
        self.random = random.Random(groups * 100 + page_size)
        self.generator = torch.Generator().manual_seed(groups * 100 + page_size)
        per_sequence = -(-max_len // page_size)
        shape = (count * per_sequence + 1, NUM_LAYERS, 2, page_size, NUM_KV_HEADS, HEAD_DIM)
        # What earlier owners left, at its worst: not even a number.
        self.pool = torch.full(shape, float("nan"), dtype=end.dtype, device=end.device)
        self.attention = end.make(self.pool, self.num_heads, per_sequence)
        free = list(range(1, len(self.pool)))
        self.random.shuffle(free)
        self.sequences = [Sequence([free.pop() for _ in range(per_sequence)]) for _ in range(count)]
        for sequence in self.sequences:
            sequence.keys = [self.tokens(0, NUM_KV_HEADS) for _ in range(NUM_LAYERS)]
            sequence.values = [self.tokens(0, NUM_KV_HEADS) for _ in range(NUM_LAYERS)]

    def tokens(self, count: int, heads: int) -> Tensor:
        made = torch.randn((count, heads, HEAD_DIM), generator=self.generator)
        return made.to(self.end.device, self.end.dtype)

    def step(self, parts: list[tuple[int, int]]) -> None:
        """Compute (sequence, new tokens) parts in one step; each layer must equal the naive one."""
        parts = sorted(parts, key=lambda part: part[1] > 1)
        rows = [
            Row(
                index,
                [0] * count,
                self.sequences[index].length,
                self.sequences[index].pages,
                SamplingParams(),
                0,
            )
            for index, count in parts
        ]
        self.attention.plan(lay_out([span_of(row) for row in rows], self.page_size))
        total = sum(count for _, count in parts)
        for layer in range(NUM_LAYERS):
            # A view into a wider tensor, as a fused product gives it.
            fused = self.tokens(total, self.num_heads + 2 * NUM_KV_HEADS)
            query = fused[:, : self.num_heads]
            key, value = fused[:, self.num_heads :].chunk(2, dim=1)
            self.attention.append(layer, key, value)
            found = self.attention.run(layer, query)
            assert found.shape == query.shape
            torch.testing.assert_close(
                found.float().cpu(),
                self.expected(layer, parts, query, key, value),
                rtol=0,
                atol=self.end.tolerance,
            )
        for index, count in parts:
            self.sequences[index].length += count

    def expected(
        self, layer: int, parts: list[tuple[int, int]], query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        outs, start = [], 0
        for index, count in parts:
            sequence, new = self.sequences[index], slice(start, start + count)
            sequence.keys[layer] = torch.cat((sequence.keys[layer], key[new]))
            sequence.values[layer] = torch.cat((sequence.values[layer], value[new]))
            outs.append(naive(query[new], sequence.keys[layer], sequence.values[layer]))
            start += count
        return torch.cat(outs)


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of the last positions, one query at a time, in float32."""
    query, key, value = (part.float().cpu() for part in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    before = len(key) - len(query)
    out = torch.empty_like(query)
    for row in range(len(query)):
        seen = slice(0, before + row + 1)
        scores = (key[seen] * query[row]).sum(dim=-1, keepdim=True) / HEAD_DIM**0.5
        out[row] = (torch.softmax(scores, dim=0) * value[seen]).sum(dim=0)
    return out


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu) if end.device == "cuda" else name
        for name, end in BACK_ENDS.items()
    ]
)
def end(request: pytest.FixtureRequest) -> Iterator[BackEnd]:
    end = BACK_ENDS[request.param]
    with end.library(), torch.inference_mode():
        yield end


@pytest.mark.parametrize("groups", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("page_size", [1, 16])
def test_prefill_then_decode(end: BackEnd, groups: int, page_size: int) -> None:
    bench = Bench(end, groups, page_size, max_len=40, count=2)
    bench.step([(0, 30), (1, 7)])
    for _ in range(4):
        bench.step([(0, 1), (1, 1)])


@pytest.mark.parametrize("page_size", [1, 16])
def test_chunked_prefill_sees_what_came_before(end: BackEnd, page_size: int) -> None:
    bench = Bench(end, 3, page_size, max_len=64, count=1)
    for count in (5, 16, 1, 11, 20, 3):
        bench.step([(0, count)])


def test_ragged_decode_from_one_token_to_many_pages(end: BackEnd) -> None:
    bench = Bench(end, 3, 16, max_len=128, count=6)
    bench.step([(0, 1), (1, 15), (2, 16), (3, 17), (4, 32), (5, 120)])
    for _ in range(3):
        bench.step([(index, 1) for index in range(6)])


def test_mixed_steps_of_decode_first_chunk_and_later_chunk(end: BackEnd) -> None:
    bench = Bench(end, 4, 16, max_len=80, count=4)
    bench.step([(0, 20), (1, 33)])
    bench.step([(0, 1), (1, 1), (2, 40)])
    bench.step([(0, 1), (1, 1), (2, 17), (3, 9)])
    bench.step([(3, 16), (0, 1)])


def test_chunk_longer_than_one_tile_of_the_mask(end: BackEnd) -> None:
    bench = Bench(end, 1, 16, max_len=320, count=1)
    bench.step([(0, 10)])
    bench.step([(0, 300)])


@pytest.mark.parametrize("common", [255, 272])
def test_rows_that_share_pages(end: BackEnd, common: int) -> None:
    """Nine sequences go on from the same pages, some from the end of the last; a prompt beside."""
    bench = Bench(end, 4, 16, max_len=common + 48, count=10)
    bench.step([(0, common)])
    first, *others, last = bench.sequences
    for other in others:
        other.pages[: common // 16] = first.pages[: common // 16]
        other.length = common - common % 16
        other.keys = [one[: other.length] for one in first.keys]
        other.values = [one[: other.length] for one in first.values]
    for count in (1, 1, 20, 1):
        bench.step([(0, 1), *((index, 1) for index in range(1, 9)), (9, count)])
    assert last.length == 23


def test_random_steps(end: BackEnd) -> None:
    """Any mix of rows and chunk lengths, 25 steps over 5 sequences."""
    bench = Bench(end, 3, 16, max_len=600, count=5)
    for _ in range(25):
        chosen = bench.random.sample(range(5), bench.random.randint(1, 5))
        bench.step([(index, bench.random.choice([1, 1, 1, 2, 15, 24])) for index in chosen])


def test_steps_write_no_page_of_another_sequence(end: BackEnd) -> None:
    bench = Bench(end, 3, 16, max_len=48, count=2)
    before = bench.pool.clone()
    bench.step([(0, 20)])
    bench.step([(0, 1)])
    untouched = [0, *bench.sequences[1].pages, *bench.sequences[0].pages[2:]]
    assert torch.equal(bench.pool[untouched].view(torch.uint8), before[untouched].view(torch.uint8))
