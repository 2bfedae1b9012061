"""A step's rows as tensors in FlashInfer's form."""

import pytest

from dopd.engine.torch_batch import Span, lay_out, span_of
from dopd.types import Row, SamplingParams

DRAW = SamplingParams()


def test_rows_lie_end_to_end_decode_first() -> None:
    rows = [
        Row(0, [7], 20, [3, 1, 9], DRAW, 5),
        Row(1, [8], 15, [4], DRAW, 1),
        Row(2, [1, 2, 3], 30, [5, 6, 2], None, 0),
        Row(3, [4, 5], 0, [8], DRAW, 0),
    ]
    meta = lay_out([span_of(row) for row in rows], page_size=16)
    assert meta.positions.tolist() == [20, 15, 30, 31, 32, 0, 1]
    assert meta.qo_indptr.tolist() == [0, 1, 2, 5, 7]
    # Only pages that hold tokens after this step: 9 is reserved and left out.
    assert meta.kv_indices.tolist() == [3, 1, 4, 5, 6, 2, 8]
    assert meta.kv_indptr.tolist() == [0, 2, 3, 6, 7]
    assert meta.last_page_len.tolist() == [5, 16, 1, 2]
    assert meta.slot_pages.tolist() == [1, 4, 6, 6, 2, 8, 8]
    assert meta.slot_offsets.tolist() == [4, 15, 14, 15, 0, 0, 1]
    assert meta.num_decode_rows == 2


@pytest.mark.parametrize(
    ("counts", "num_decode_rows"), [([1, 1], 2), ([3, 2], 0), ([1, 4, 1], 1), ([5], 0)]
)
def test_decode_rows_are_those_of_one_token_from_the_front(
    counts: list[int], num_decode_rows: int
) -> None:
    spans = [Span(0, count, [index]) for index, count in enumerate(counts)]
    assert lay_out(spans, 16).num_decode_rows == num_decode_rows
