"""FlashInfer's back end where it is more than attention: captured steps, choices, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import Tensor

from dopd.attention import choose, flashinfer_shape, staging
from dopd.attention.base import BatchMeta
from dopd.attention.flashinfer_shape import Shape
from dopd.engine.torch_batch import Span, lay_out
from dopd.layers.kernels import TorchKernels
from dopd.layers.rope import Rope
from tests.support.cases import cases
from tests.support.gpu import stub_flashinfer
from tests.support.gpu.stub_flashinfer import State, capturing

LAYERS, PAGE, KV_HEADS, HEADS, DIM = 2, 4, 2, 6, 64
PAGES = 64
DUMMY = PAGES - 1
MAX_ROWS, MAX_ROW_PAGES = 8, 8


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[State]]:
    """The double in place of the library; a small workspace, which it looks through."""
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    with stub_flashinfer.installed() as state, torch.inference_mode():
        yield state


def make(num_heads: int = HEADS, **options: Any) -> tuple[Any, Tensor]:
    """A back end, and its pool of random numbers."""
    torch.manual_seed(7)
    pool = torch.randn(PAGES, LAYERS, 2, PAGE, KV_HEADS, DIM)
    sizes = {"max_rows": MAX_ROWS, "max_row_pages": MAX_ROW_PAGES}
    made = choose.flashinfer().FlashInferAttention(pool, num_heads, **sizes, **options)
    return made, pool


def decode_meta(lengths: list[int]) -> BatchMeta:
    """Rows that each decode their last token, on pages of their own; the last ones fill up."""
    rows = []
    for index, length in enumerate(lengths):
        pages = [index * MAX_ROW_PAGES + page for page in range(-(-length // PAGE))]
        if length == 1:
            pages = [DUMMY]
        rows.append(Span(length - 1, 1, pages))
    return lay_out(rows, PAGE)


def step(attention: Any, count: int, seed: int) -> list[Tensor]:
    """Append and run in every layer; what came out."""
    generator = torch.Generator().manual_seed(seed)
    outs = []
    for layer in range(LAYERS):
        heads = torch.randn(count, HEADS + 2 * KV_HEADS, DIM, generator=generator)
        query, key, value = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        attention.append(layer, key, value)
        outs.append(attention.run(layer, query))
    return outs


def test_captured_steps_of_all_sizes_equal_steps_that_are_not() -> None:
    """Sizes alternate over the buffers that they share, as decode steps of a server do."""
    fixed, pool = make()
    plain, other = make()
    steps = [[9], [10, 5], [6, 11, 1, 1], [3, 4, 5, 6, 7, 1, 1, 1], [12], [7, 12], [13]]
    for seed, lengths in enumerate(steps):
        meta = decode_meta(lengths)
        view = fixed.fixed(len(lengths))
        assert view is fixed.fixed(len(lengths))
        view.plan(meta)
        plain.plan(meta)
        with capturing():
            found = step(view, len(lengths), seed)
        for one, expected in zip(found, step(plain, len(lengths), seed), strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)
    assert torch.equal(pool, other)
    # The first plan of a size chooses its kernels, the later ones copy nothing.
    assert State.plans[::2] == ["decode", "decode", "decode", "decode", "fast", "fast", "fast"]


def test_what_a_captured_step_reads_never_moves() -> None:
    attention, _ = make()
    view = attention.fixed(2)
    seen = set()
    for lengths in ([9, 10], [31, 32], [2, 3]):
        view.plan(decode_meta(lengths))
        parts = (*view._slots, *view._pages, *attention._layers)
        seen.add(tuple(part.data_ptr() for part in parts))
        assert view._pages[0].shape == (MAX_ROWS * MAX_ROW_PAGES,)
    assert len(seen) == 1
    # Plans of all sizes lie in one small workspace: FlashInfer's own would be 8 MiB for each.
    plans = [attention.fixed(size)._decode._plans for size in (2, 4)]
    assert plans[0] is plans[1]
    assert plans[0].nbytes == 1 << 20


def test_plan_of_another_size_before_a_replay_is_found() -> None:
    """Guards the tests above: the double sees what would compute nonsense on a GPU."""
    attention, _ = make()
    two, four = attention.fixed(2), attention.fixed(4)
    two.plan(decode_meta([9, 10]))
    four.plan(decode_meta([5, 6, 7, 8]))
    with pytest.raises(AssertionError, match="planned for another step"):
        step(two, 2, 0)


def test_a_view_is_for_decode_rows_of_its_number_only() -> None:
    attention, _ = make()
    for lengths, size in (([9], 2), ([9, 10, 11], 2)):
        with pytest.raises(ValueError, match=f"this view is for {size} that do"):
            attention.fixed(size).plan(decode_meta(lengths))
    prefill = lay_out([Span(0, 2, [1])], PAGE)
    with pytest.raises(ValueError, match="1 rows, 0 of them decode"):
        attention.fixed(1).plan(prefill)
    for size in (0, MAX_ROWS + 1):
        with pytest.raises(ValueError, match="made for 1 to 8"):
            attention.fixed(size)
    long = decode_meta([9])
    too_many = torch.zeros(MAX_ROWS * MAX_ROW_PAGES + 1, dtype=torch.int32)
    pages = BatchMeta(
        long.qo_indptr,
        torch.tensor([0, len(too_many)], dtype=torch.int32),
        too_many,
        *(long.last_page_len, long.positions, long.slot_pages, long.slot_offsets, 1),
    )
    with pytest.raises(ValueError, match="65 numbers for a buffer of 64"):
        attention.fixed(1).plan(pages)


@pytest.mark.parametrize(
    ("num_heads", "fixed_split", "expected"),
    [
        (2, False, False),
        (4, False, False),
        (6, False, False),
        (8, False, True),
        (10, False, True),
        (16, False, True),
        (2, True, True),
    ],
)
def test_tensor_cores_decode_large_groups_and_fixed_splits(
    num_heads: int, fixed_split: bool, expected: bool, double: type[State]
) -> None:
    attention, _ = make(num_heads, fixed_split=fixed_split)
    if not fixed_split:
        attention.fixed(1)
    assert set(double.tensor_cores) == {expected}


def test_fixed_splits_are_not_captured() -> None:
    """Blocks without work would read what an earlier plan left; the double refuses it, too."""
    attention, _ = make(fixed_split=True)
    with pytest.raises(ValueError, match="cannot be captured"):
        attention.fixed(2)
    attention._options["disable_split_kv"] = False
    view = attention.fixed(2)
    attention._options["disable_split_kv"] = True
    with pytest.raises(AssertionError, match="blocks without work are not masked"):
        view.plan(decode_meta([9, 10]))


def planned_bytes(heads: int, kv_heads: int, dim: int, rows: int, num_sms: int, major: int) -> int:
    """What 0.6.18's PrefillPlan asks for a captured decode step, and for the worst eager step."""
    group = heads // kv_heads
    # FA2DetermineCtaTileQ of one token of each row.
    tile = 128 if group > 64 and dim < 256 else 64 if group > 16 or major < 8 else 16
    running = 2 * num_sms // kv_heads
    captured = tile * max(running, -(-rows * group // tile) + rows - 1)
    eager = running * (128 if dim < 256 else 64)
    return max(captured, eager) * heads * (dim + 1) * 4


@cases(100, HealthCheck.function_scoped_fixture)
@given(
    kv_heads=st.sampled_from([1, 2, 3, 4, 8, 16, 32]),
    group=st.sampled_from([1, 3, 4, 7, 8, 16, 17, 32, 64, 71, 96]),
    dim=st.sampled_from([64, 128, 256]),
    rows=st.sampled_from([1, 8, 100, 256, 512, 1024]),
    num_sms=st.sampled_from([0, 40, 108, 132]),
    major=st.sampled_from([7, 8, 9]),
)
def test_workspace_holds_what_the_planner_may_ask_for(
    kv_heads: int, group: int, dim: int, rows: int, num_sms: int, major: int
) -> None:
    shape = Shape(kv_heads * group, kv_heads, dim, 16, torch.bfloat16)
    asked = planned_bytes(kv_heads * group, kv_heads, dim, rows, num_sms, major)
    found = shape.workspace_bytes(rows, num_sms, major)
    assert asked <= found
    # Little more: a row's tile and blocks that do not share evenly; heads of 256 have small tiles.
    spare = (128 + 128) * 4 * kv_heads * group * (dim + 1)
    assert found <= max(asked * (2 if dim == 256 else 1), 1 << 20) + spare


def test_workspace_of_a_large_model_is_what_flashinfer_recommends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Llama 3.1 8B on an H100."""
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 128 << 20)
    assert Shape(32, 8, 128, 16, torch.bfloat16).workspace_bytes(256, 132, 9) == 128 << 20


def test_pinned_memory_is_written_only_when_it_was_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may come while the GPU still copies the last one's numbers."""
    attention, _ = make()
    order: list[str] = []

    class Event:
        def synchronize(self) -> None:
            order.append("wait")

        def record(self) -> None:
            order.append("mark")

    write = staging._write

    def writes(*args: Any) -> None:
        order.append("write")
        write(*args)

    attention._staging._copied = Event()
    monkeypatch.setattr(staging, "_write", writes)
    attention.plan(decode_meta([9, 10]))
    attention.fixed(2).plan(decode_meta([9, 10]))
    assert order == ["wait", "write", "mark"] * 2


def test_kernels_are_those_of_torch() -> None:
    torch.manual_seed(3)
    rope = Rope(torch.rand(DIM // 2), 100)
    plain = TorchKernels(rope, torch.float32, torch.device("cpu"))
    kernels = choose.flashinfer().FlashInferKernels(rope.cos, rope.sin, HEADS, torch.device("cpu"))
    x, residual, weight = torch.randn(5, 96), torch.randn(5, 96), torch.randn(96)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    expected = plain.add_rms_norm(x, residual, weight, 1e-5)
    found = kernels.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(kernels.silu_mul(x), plain.silu_mul(x))
    positions = torch.tensor([0, 3, 99, 7, 7])
    # As in the model: queries and keys in front of values, all one product.
    fused = torch.randn(5, HEADS + 2 * KV_HEADS, DIM)
    turned = plain.rotation(positions)(fused[:, : HEADS + KV_HEADS])
    values = fused[:, HEADS + KV_HEADS :].clone()
    torch.testing.assert_close(kernels.rotation(positions)(fused[:, : HEADS + KV_HEADS]), turned)
    assert torch.equal(fused[:, HEADS + KV_HEADS :], values)
