"""Decode steps as graphs: launched once as a whole instead of kernel by kernel.

A graph computes a batch of one size from memory at fixed places, so steps are padded to the next
size that there is. Rows that only pad lie on a page that nobody owns. Knows nothing of CUDA:
`capture` is given (`engine/cuda`, or a double). Made by `engine/load`, called by `engine/runner`.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dopd.attention.base import Attention, GraphAttention
from dopd.engine.stream import Stream
from dopd.engine.torch_batch import Span, lay_out

log = logging.getLogger(__name__)

# The largest batch that is captured; larger ones are bound by memory, not by launching.
MAX_GRAPH_ROWS = 256
# Below this, sizes double; from here on they are this far apart.
SIZE_STEP = 8
# Share of a row's length that a replay may be off. A library may sum in another order in a capture:
# in bfloat16 a few thousandths after many layers. What reads the wrong memory is off by all of it.
REPLAY_TOLERANCE = 0.05

Replay = Callable[[], None]
# Turns a function without arguments or result, which reads and writes only memory that stays where
# it is, into one that does the same again. It may call the function, any number of times.
Capture = Callable[[Callable[[], None]], Replay]


class Model(Protocol):
    """What a step is computed by."""

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states [tokens, hidden] of what `attention` has planned.

        tokens, positions: [tokens] int64, rows end to end.
        """
        ...


def sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture, ascending: 1, 2, 4, 8, 16, 24 and so on; the last one is the most
    rows that a graph can be asked for."""
    most = min(max_num_seqs, MAX_GRAPH_ROWS)
    doubling = [1 << power for power in range(SIZE_STEP.bit_length() - 1)]
    return [size for size in (*doubling, *range(SIZE_STEP, most, SIZE_STEP)) if size < most] + [
        most
    ]


def is_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether hidden states [rows, hidden] are the same but for rounding.

    By rows: residuals have few large numbers, and rounding those moves the small ones by more than
    they are.
    """
    off = (found.float() - expected.float()).norm(dim=-1)
    # Not so if one of them is no number.
    return bool((off <= REPLAY_TOLERANCE * expected.float().norm(dim=-1)).all())


class DecodeGraphs:
    """Graphs of the given sizes, and the memory that they read and write."""

    def __init__(
        self,
        model: Model,
        attention: GraphAttention,
        hidden: Tensor,
        dummy: Span,
        page_size: int,
        graph_sizes: Sequence[int],
        stream: Stream,
    ) -> None:
        """hidden: [largest size, hidden], where steps leave what they compute; its device is that
        of the model. dummy: one token on a page that nobody owns.
        """
        self._model = model
        self._attention = attention
        self._hidden = hidden
        self._dummy = dummy
        self._page_size = page_size
        self._sizes = sorted(graph_sizes)
        self._stream = stream
        self._replays: dict[int, Replay] = {}
        self._views: dict[int, Attention] = {}
        # Tokens and positions, on the host and there.
        shape, is_cuda = (2, self._sizes[-1]), hidden.device.type == "cuda"
        self._staged = torch.zeros(shape, dtype=torch.int64, pin_memory=is_cuda)
        self._inputs = torch.zeros(shape, dtype=torch.int64, device=hidden.device)

    def fit(self, num_rows: int) -> int | None:
        """The size that computes so many rows; None: without a graph."""
        index = bisect.bisect_left(self._sizes, num_rows)
        if index == len(self._sizes) or self._sizes[index] not in self._replays:
            return None
        return self._sizes[index]

    @torch.inference_mode()
    def warm(self, capture: Capture, progress: Callable[[float], None]) -> None:
        """Capture every size, the largest first: the others find memory that it used.

        A size that cannot be captured, or whose graph computes something else than the function
        does, is computed without a graph. Raises if the device fails.
        """
        for done, size in enumerate(reversed(self._sizes), 1):
            try:
                self._replays[size] = self._captured(size, capture)
            except Exception as error:  # noqa: BLE001
                # If this raises, it is not about graphs.
                self._stream.synchronise()
                log.error(
                    "no CUDA graph of %d sequences, such steps run without one, slower: %s: %s",
                    *(size, type(error).__name__, error),
                )
            progress(done / len(self._sizes))

    def plan(self, size: int, spans: Sequence[Span]) -> Tensor:
        """Prepare a step of these rows, each of one token; returns their positions.

        Waits for nothing but copies: the step before may still be computed.
        """
        padded = [*spans, *[self._dummy] * (size - len(spans))]
        meta = lay_out(padded, self._page_size)
        self._view(size).plan(meta)
        return meta.positions[: len(spans)]

    def replay(self, size: int, tokens: Sequence[int], positions: Tensor) -> Tensor:
        """Compute the step that was planned last; hidden states of its rows, until the next one."""
        self._fill(size, tokens, positions)
        self._replays[size]()
        return self._hidden[: len(tokens)]

    def _captured(self, size: int, capture: Capture) -> Replay:
        view = self._view(size)
        inputs, hidden = self._inputs[:, :size], self._hidden[:size]

        def compute() -> None:
            hidden.copy_(self._model.forward(inputs[0], inputs[1], view))

        positions = self.plan(size, [])
        self._fill(size, [], positions)
        compute()
        expected = hidden.clone()
        replay = capture(compute)
        hidden.zero_()
        replay()
        if not is_alike(hidden, expected):
            raise RuntimeError("its replay computes something else")
        return replay

    def _view(self, size: int) -> Attention:
        if size not in self._views:
            self._views[size] = self._attention.fixed(size)
        return self._views[size]

    def _fill(self, size: int, tokens: Sequence[int], positions: Tensor) -> None:
        """Put the inputs of a step in their place."""
        # The last step's inputs may still be on their way.
        self._stream.wait()
        count = len(tokens)
        self._staged[0, :count] = torch.tensor(tokens, dtype=torch.int64)
        self._staged[1, :count] = positions
        for there, staged in zip(self._inputs, self._staged, strict=True):
            there[:size].copy_(staged[:size], non_blocking=True)
        self._stream.mark()
