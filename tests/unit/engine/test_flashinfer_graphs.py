"""FlashInfer's back end under graphs and plan ahead, over its double: the engine's tokens stay.

The double computes in Python and cannot be recorded, so a replay calls the function again; it holds
on to the buffers of the capture, and refuses what may not happen in one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from dopd.attention import choose, flashinfer_shape
from dopd.attention.base import Attention
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.types import SamplingParams
from tests.support import stepping
from tests.support.cases import cases
from tests.support.gpu import stub_flashinfer
from tests.support.gpu.graph_engine import with_graphs

SIZES = [1, 2, 4]
NUM_TOKENS = 18
PROMPTS = [[5, 9, 300, 7], list(range(40, 71)), [17] * 15, [3], [200, 100] * 8]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def plain() -> TorchEngine:
    """Heads of 64, which FlashInfer has kernels for; GQA 2."""
    return load("random:tiny", device="cpu", kv_memory="4MiB", max_model_len=256)


@pytest.fixture(scope="module")
def expected(plain: TorchEngine) -> list[list[int]]:
    return stepping.run(plain, stepping.start(plain, PROMPTS, NUM_TOKENS), NUM_TOKENS)


@pytest.fixture
def engine(plain: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    num_heads = plain._weights.config.num_heads
    with stub_flashinfer.installed():

        def attention(pool: torch.Tensor, max_row_pages: int) -> Attention:
            back_end = choose.flashinfer()
            made: Attention = back_end.FlashInferAttention(
                pool, num_heads, max_rows=SIZES[-1], max_row_pages=max_row_pages
            )
            return made

        made = with_graphs(plain, SIZES, stub_flashinfer.called_again, make_attention=attention)
        graphs = made._runner._graphs
        assert graphs is not None and [graphs.fit(size) for size in SIZES] == SIZES
        yield made


@cases(8, HealthCheck.function_scoped_fixture)
@given(st.data())
def test_any_mix_of_rows_gives_the_tokens_of_the_torch_back_end(
    engine: TorchEngine, expected: list[list[int]], data: st.DataObject
) -> None:
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    for _ in range(8):
        chosen = data.draw(st.lists(st.sampled_from(running), unique_by=id, min_size=1))
        for _ in range(data.draw(st.integers(1, 4))):
            if all(len(one.drawn) < NUM_TOKENS for one in chosen):
                stepping.step(engine, chosen, data.draw(st.sampled_from([3, 64])))
    assert stepping.run(engine, running, NUM_TOKENS) == expected


def test_a_batch_that_goes_on_is_foreseen(engine: TorchEngine, expected: list[list[int]]) -> None:
    running = stepping.start(engine, PROMPTS[:3], NUM_TOKENS, GREEDY)
    assert stepping.run(engine, running, NUM_TOKENS) == expected[:3]
    # All but the step of the prompts and the first that decodes.
    assert (engine.foresight.hits, engine.foresight.misses) == (NUM_TOKENS - 2, 0)
