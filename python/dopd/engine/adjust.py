"""Changes to the logits before a draw: ids ruled out, bias, penalties. In float32, on the CPU.

Called by the sampler for rows that ask. The order is vLLM's (vllm/v1/sample/sampler.py): bans,
bias, repetition, then frequency and presence penalty. Each logit is changed on its own, by numbers
that follow from the sequence alone, so a row comes out the same in whatever batch, on whichever
worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dopd.types import History

LARGEST = torch.finfo(torch.float32).max
# Entries that a sequence's columns hold at first; they double.
FIRST_CAPACITY = 64


class Asking(Protocol):
    """What is read of a draw."""

    @property
    def pos(self) -> int:
        """Answer tokens made before."""
        ...

    @property
    def forbidden(self) -> frozenset[int]:
        """Ids ruled out."""
        ...

    @property
    def history(self) -> History | None:
        """What else the logits are adjusted by."""
        ...


def adjust(logits: Tensor, draws: Sequence[Asking]) -> Tensor:
    """Change logits [draws, vocab_size] (float32, contiguous, CPU) in place, and return them."""
    flat, vocab_size = logits.view(-1), logits.shape[-1]
    bans = [
        row * vocab_size + token
        for row, draw in enumerate(draws)
        for token in draw.forbidden
        if token < vocab_size
    ]
    flat[bans] = float("-inf")
    seen = [
        (row * vocab_size, Seen.of(draw.history, draw.pos))
        for row, draw in enumerate(draws)
        if draw.history is not None
    ]
    if seen:
        _add_bias(flat, seen)
        _penalize(flat, seen)
    return logits


class Seen:
    """The distinct ids that one sequence's penalties look at, and how often the answer has each.

    Kept in `History.cache` and grown with the answer: a step costs one entry, not the whole text.
    """

    def __init__(self, history: History) -> None:
        adjustments = history.adjustments
        self.repetition = adjustments.repetition_penalty
        self.frequency = adjustments.frequency_penalty
        self.presence = adjustments.presence_penalty
        bias: dict[int, float] = {}
        for token, value in adjustments.bias:
            bias[token] = bias.get(token, 0.0) + value
        self.bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self.bias_values = np.fromiter(bias.values(), np.float32, len(bias))
        self._penalizes = (self.repetition, self.frequency, self.presence) != (1.0, 0.0, 0.0)
        prompt = np.unique(np.asarray(history.prompt, dtype=np.int64))
        self._size = len(prompt)
        self._ids = np.zeros(max(FIRST_CAPACITY, 2 * self._size), np.int64)
        self._ids[: self._size] = prompt
        self._counts = np.zeros(len(self._ids), np.float32)
        self._place = {token: place for place, token in enumerate(prompt.tolist())}
        self._num_counted = 0

    @classmethod
    def of(cls, history: History, pos: int) -> Seen:
        """The columns of a sequence whose answer has `pos` tokens."""
        seen = history.cache
        if not isinstance(seen, cls):
            seen = history.cache = cls(history)
        if seen._penalizes:
            seen._count(history.answer[seen._num_counted : pos])
        return seen

    @property
    def ids(self) -> np.ndarray:
        """[distinct ids] int64: of the prompt, if repetition is penalized, and of the answer."""
        return self._ids[: self._size]

    @property
    def counts(self) -> np.ndarray:
        """[distinct ids] float32: how often the answer has each; 0 in the prompt alone."""
        return self._counts[: self._size]

    def _count(self, tokens: list[int]) -> None:
        for token in tokens:
            place = self._place.setdefault(token, self._size)
            if place == self._size:
                self._add(token)
            self._counts[place] += 1
        self._num_counted += len(tokens)

    def _add(self, token: int) -> None:
        if self._size == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[self._size] = token
        self._size += 1


def _add_bias(flat: Tensor, seen: list[tuple[int, Seen]]) -> None:
    ids = np.concatenate([one.bias_ids + base for base, one in seen])
    values = np.concatenate([one.bias_values for _, one in seen])
    flat[torch.from_numpy(ids)] += torch.from_numpy(values)


def _penalize(flat: Tensor, seen: list[tuple[int, Seen]]) -> None:
    sizes = [len(one.ids) for _, one in seen]
    ids = torch.from_numpy(np.concatenate([one.ids + base for base, one in seen]))
    counts = np.concatenate([one.counts for _, one in seen])

    def each(values: list[float]) -> np.ndarray:
        return np.repeat(np.asarray(values, np.float32), sizes)

    repetition = torch.from_numpy(each([one.repetition for _, one in seen]))
    frequency = each([one.frequency for _, one in seen]) * counts
    presence = each([one.presence for _, one in seen]) * (counts > 0)
    logits = flat[ids]
    is_finite = logits.isfinite()
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    # A tiny penalty would make a sound logit infinite, as a broken row's are.
    logits = torch.where(is_finite, logits.clamp(max=LARGEST), logits)
    flat[ids] = logits - torch.from_numpy(frequency) - torch.from_numpy(presence)
