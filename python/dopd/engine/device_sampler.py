"""The same draws as the sampler's where the logits lie on a GPU: only what was drawn is copied.

Called by the engine. Tokens are those of `sampler.sample` but for ties: a border between two tokens
may lie a rounding error beside, in whichever way the device adds. Rows whose logits are adjusted
go to the CPU, where the adjustments are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dopd.engine.sampler import GREEDY_BELOW, MAX_TOP_LOGPROBS, Draw, not_finite, sample, uniform
from dopd.layers.kernels import Kernels
from dopd.types import Logprobs, Sampled

# Numbers of one table in float64, 64 MiB; a draw makes about six of them.
DRAWN_AT_ONCE = 8 << 20


def sample_where_it_lies(
    logits: Tensor, draws: Sequence[Draw], kernels: Kernels
) -> list[Sampled | Exception]:
    """See `sampler.sample`."""
    if logits.device.type == "cpu":
        return sample(logits, draws)
    return sample_on_device(logits, draws, kernels)


def sample_on_device(
    logits: Tensor, draws: Sequence[Draw], kernels: Kernels
) -> list[Sampled | Exception]:
    """See `sampler.sample`; any device will do."""
    results: dict[int, Sampled | Exception] = {}
    adjusted = [i for i, draw in enumerate(draws) if draw.forbidden or draw.history is not None]
    if adjusted:
        there = logits[_index(adjusted, logits.device)].float().cpu()
        results |= zip(adjusted, sample(there, [draws[i] for i in adjusted]), strict=True)
    drawn = [
        i
        for i, draw in enumerate(draws)
        if i not in results and draw.params.temperature >= GREEDY_BELOW
    ]
    # NaN counts as the largest, so one look at the largest finds every kind of broken row.
    best, tokens = logits.max(dim=-1)
    for part in _slices(drawn, logits.shape[-1]):
        index = _index(part, logits.device)
        # What filters do with a row that fails anyway, nobody knows.
        broken = ~best[index].isfinite()
        sound = logits[index].masked_fill(broken.unsqueeze(1), 0.0)
        tokens[index] = _draw(sound, [draws[i] for i in part], kernels)
    # One copy. A token's number is exact in float64.
    values = torch.stack((best.double(), tokens.double())).tolist()
    told = _logprobs(logits, draws, tokens)
    for i, (value, token) in enumerate(zip(*values, strict=True)):
        if i not in results:
            results[i] = not_finite(value) or Sampled(int(token), told.get(i))
    return [results[i] for i in range(len(draws))]


def _draw(logits: Tensor, draws: Sequence[Draw], kernels: Kernels) -> Tensor:
    """One token a row: as `sampler._draw`, all rows at once. Returns [rows] int64."""
    device = logits.device
    params = [draw.params for draw in draws]

    def column(values: list[float]) -> Tensor:
        # Read by the device before it computes anything below: nobody waits for it.
        there = torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)
        return there.unsqueeze(1)

    scaled = logits.double() / column([one.temperature for one in params])
    top_k, top_p = [one.top_k for one in params], [one.top_p for one in params]
    is_cut = any(top_k) or min(top_p) < 1
    if is_cut or any(one.min_p for one in params):
        kept = torch.softmax(scaled, dim=-1)
        least = column([one.min_p for one in params]) * kept.amax(dim=-1, keepdim=True)
        kept = kept.masked_fill(kept < least, 0.0)
        if is_cut:
            kept = kernels.keep_top(kept, top_k, top_p)
        scaled = scaled.masked_fill(kept == 0, float("-inf"))
    cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    whole = cumulative[:, -1:].contiguous()
    at = column([uniform(one.params.seed, one.params.choice, one.pos) for one in draws])
    # right=True: the first entry above, so a token of probability 0 is never drawn. The product may
    # be rounded up to the whole: then it is the last token of any probability.
    found = torch.searchsorted(cumulative, at * whole, right=True)
    last = torch.searchsorted(cumulative, whole)
    return torch.minimum(found, last).squeeze(1)


def _logprobs(logits: Tensor, draws: Sequence[Draw], tokens: Tensor) -> dict[int, Logprobs]:
    """Log probabilities under the raw logits, of rows that ask: the token's, the most likely."""
    asking = [i for i, draw in enumerate(draws) if draw.params.top_logprobs is not None]
    told = {}
    for part in _slices(asking, logits.shape[-1]):
        index = _index(part, logits.device)
        logprobs = torch.log_softmax(logits[index].float(), dim=-1)
        counts = [_num_top(draws[i], logits.shape[-1]) for i in part]
        values, ids = logprobs.topk(max(counts))
        chosen = logprobs.gather(1, tokens[index].unsqueeze(1))
        numbers = torch.cat((chosen.double(), values.double(), ids.double()), dim=1).tolist()
        for i, count, row in zip(part, counts, numbers, strict=True):
            best, names = row[1 : 1 + count], row[1 + max(counts) :][:count]
            pairs = zip((int(name) for name in names), best, strict=True)
            told[i] = Logprobs(row[0], tuple(pairs))
    return told


def _num_top(draw: Draw, vocab_size: int) -> int:
    return min(draw.params.top_logprobs or 0, MAX_TOP_LOGPROBS, vocab_size)


def _slices(rows: list[int], vocab_size: int) -> list[list[int]]:
    """These rows, so many at a time that their tables stay small."""
    size = max(1, DRAWN_AT_ONCE // vocab_size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _index(rows: list[int], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
