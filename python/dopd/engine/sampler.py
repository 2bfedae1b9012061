"""From logits to tokens. A draw depends on the logits and on (seed, choice, position) and on
nothing else.

So a request gets the same tokens in whatever batch and on whichever worker it runs, and again
after a replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dopd.engine.adjust import adjust
from dopd.errors import DopdError
from dopd.types import History, Logprobs, Sampled, SamplingParams

U64 = (1 << 64) - 1
MAX_TOP_LOGPROBS = 128
# Dividing by less would overflow; the distribution is one token's by then.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row asks for: parameters, how many answer tokens were made before, ids ruled out,
    what else its logits are adjusted by."""

    params: SamplingParams
    pos: int
    forbidden: frozenset[int] = frozenset()
    history: History | None = None


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[Sampled | Exception]:
    """Draw one token per row.

    logits: [draws, vocab_size], any float dtype and device. Temperature 0 takes the most likely
    token, the lowest id among equals; so does one below GREEDY_BELOW. Returns an exception for a
    row whose logits are not finite, or that could not be adjusted or drawn; the others stand.
    """
    raw = logits.float()
    # NaN counts as the largest, so one look at the largest finds every kind of broken row.
    best, tokens = (part.tolist() for part in raw.max(dim=-1))
    raw = raw.cpu()
    rows = list(raw)
    failed: dict[int, Exception] = {}
    # Only rows that ask are copied: the others pay nothing for them.
    asking = [i for i, draw in enumerate(draws) if draw.forbidden or draw.history is not None]
    for index, row in _adjusted(raw, draws, asking):
        if isinstance(row, Exception):
            failed[index] = row
        else:
            value, token = row.max(dim=-1)
            rows[index], best[index], tokens[index] = row, float(value), int(token)
    return [
        failed.get(index) or _sample_one(draw, raw[index], rows[index], best[index], tokens[index])
        for index, draw in enumerate(draws)
    ]


def _adjusted(
    raw: Tensor, draws: Sequence[Draw], asking: list[int]
) -> Iterator[tuple[int, Tensor | Exception]]:
    """Adjusted copies of the rows that ask for it: together, or one by one if that fails."""
    if not asking:
        return
    try:
        rows = adjust(raw[asking], [draws[i] for i in asking])
    except Exception as error:  # noqa: BLE001
        if len(asking) == 1:
            yield asking[0], error
            return
        for index in asking:
            yield from _adjusted(raw, draws, [index])
        return
    yield from zip(asking, rows, strict=True)


def _sample_one(
    draw: Draw, raw: Tensor, row: Tensor, best: float, token: int
) -> Sampled | Exception:
    """One row's token: `row` is what it is drawn from, `best` and `token` its largest logit."""
    if broken := not_finite(best):
        return broken
    try:
        if draw.params.temperature >= GREEDY_BELOW:
            token = _draw(row, draw)
        return Sampled(token, _logprobs(raw, token, draw.params.top_logprobs))
    except Exception as error:  # noqa: BLE001
        return error


def not_finite(best: float) -> DopdError | None:
    """What a row fails with whose largest logit is no number to draw by."""
    if abs(best) < float("inf"):
        return None
    return DopdError(f"logits are not finite (largest is {best})")


def score(logits: Tensor, tokens: list[int], num_top: int) -> list[Logprobs]:
    """Log probabilities of given tokens, and of the `num_top` most likely ones at each place.

    logits: [tokens, vocab_size], any float dtype and device.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    places = torch.tensor(tokens, device=logits.device)
    chosen = logprobs.gather(-1, places.unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = logprobs.topk(min(num_top, MAX_TOP_LOGPROBS, logprobs.shape[-1]))
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [
        Logprobs(one, tuple(zip(*top, strict=True))) for one, top in zip(chosen, tops, strict=True)
    ]


def uniform(seed: int, choice: int, pos: int) -> float:
    """A number in [0, 1) from the counter of a draw: 53 bits of splitmix64.

    The seed is hashed before the counter joins it, and not the counter as well: were both, equal
    ones would cancel out, and seed 1 at position 1 would draw as seed 2 at position 2.
    """
    counter = ((choice << 32) + pos) & U64
    return (_mix(_mix(seed & U64) ^ counter) >> 11) * 2.0**-53


def _draw(logits: Tensor, draw: Draw) -> int:
    """Inverse of the cumulative distribution at the row's uniform number, over tokens by id.

    By id and not by probability: two tokens nearly alike may change places with the last bit of a
    logit, which by id moves the border between them by that bit only. In float64, on the CPU.
    """
    params = draw.params
    scaled = logits.double() / params.temperature
    tokens: Tensor | None = None
    if params.top_k > 0 or params.top_p < 1 or params.min_p > 0:
        tokens = _candidates(scaled, params)
        scaled = scaled[tokens]
    cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    at = uniform(params.seed, params.choice, draw.pos) * cumulative[-1]
    # right=True: the first entry above `at`, so a token of probability 0 is never drawn.
    index = min(int(torch.searchsorted(cumulative, at, right=True)), len(cumulative) - 1)
    return index if tokens is None else int(tokens[index])


def _candidates(scaled: Tensor, params: SamplingParams) -> Tensor:
    """Ids that the filters leave, ascending; at least one.

    min_p, relative to the most likely token, cuts first, then top_k; top_p is a share of what they
    leave.
    """
    probabilities = torch.softmax(scaled, dim=-1)
    if params.min_p > 0:
        probabilities[probabilities < params.min_p * probabilities.max()] = 0.0
    if params.top_k > 0:
        values, ids = probabilities.topk(min(params.top_k, len(scaled)))
        if params.top_p < 1:
            kept = _num_kept(values, params.top_p * values.sum())
            values, ids = values[:kept], ids[:kept]
        return ids[values > 0].sort().values
    if params.top_p < 1:
        return _nucleus(probabilities, params.top_p)
    return probabilities.nonzero().squeeze(-1)


def _nucleus(probabilities: Tensor, share: float) -> Tensor:
    """The most likely ids, the lowest among equals, that hold `share` of all; ascending.

    Only values are sorted, not ids with them: numpy does that with vector instructions, 16 times as
    fast, and the least of the values that are kept says which ids are.
    """
    values = torch.from_numpy(np.sort(probabilities.numpy())[::-1].copy())
    kept = _num_kept(values, share * probabilities.sum())
    least = values[kept - 1]
    chosen = probabilities > least
    equals = (probabilities == least).nonzero().squeeze(-1)
    chosen[equals[: kept - int(chosen.sum())]] = True
    return (chosen & (probabilities > 0)).nonzero().squeeze(-1)


def _num_kept(values: Tensor, enough: Tensor) -> int:
    """How many values, best first, it takes to hold `enough`."""
    return min(int((values.cumsum(dim=-1) < enough).sum()) + 1, len(values))


def _logprobs(logits: Tensor, token: int, top: int | None) -> Logprobs | None:
    """Log probabilities under the raw logits: of the drawn token, and of the `top` most likely."""
    if top is None:
        return None
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(min(top, MAX_TOP_LOGPROBS, len(logits)))
    return Logprobs(float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _mix(x: int) -> int:
    """splitmix64: a step and its finisher, over 64 bits."""
    z = (x + 0x9E3779B97F4A7C15) & U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return z ^ (z >> 31)
