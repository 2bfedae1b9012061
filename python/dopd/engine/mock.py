"""The mock engine: tokens from arithmetic over a real KV, step times from a cost model. No torch.

KV entry of position p: h_p = mix(h_{p-1} ^ token_p), a little-endian u64 at 8 * (p % 16) of its
page. A step reads h_{start-1} from the page, so every token depends on all KV before it, and a
hand-off that loses or garbles a page changes the answer. The Rust mock worker computes the same
(tests/contract/mock_vectors.json).
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from dopd.engine.base import PagePool
from dopd.engine.timings import Timings
from dopd.errors import ConfigError
from dopd.kv.bytes_pool import BytesPool
from dopd.types import (
    History,
    KvGeometry,
    Logprobs,
    Result,
    Row,
    Sampled,
    SamplingParams,
    Scored,
    StepWork,
)

MASK = (1 << 64) - 1
H_START = 0x9E3779B97F4A7C15
PAGE_SIZE = 16
ENTRY_BYTES = 8
PAGE_BYTES = ENTRY_BYTES * PAGE_SIZE
VOCAB_SIZE = 258
MAX_MODEL_LEN = 131_072
EOS = 257
# Answers are at least this long, and then end with probability 1 / 128 a token.
EOS_FROM = 32
# Tokens drawn are the 95 printable ASCII characters.
FIRST_PRINTABLE, NUM_PRINTABLE = 32, 95
# A bias as great as the API allows decides alone; the mock knows no other.
BIAS_DECIDES = 100.0

GEOMETRY = KvGeometry(
    model_hash=hashlib.sha256(b"dopd-mock-1").digest(),
    dtype="mock",
    page_size=PAGE_SIZE,
    num_layers=1,
    num_kv_heads=1,
    head_dim=1,
    layout="page_major_nhd",
    tensor_parallel=1,
    page_bytes=PAGE_BYTES,
)

_U64 = struct.Struct("<Q")

StepTime = Callable[[str, list[tuple[int, int]], int, int], int]
"""(timings, [(new tokens, context before)] of prefill rows, decode rows, sum of their contexts)."""


def mix(x: int) -> int:
    """splitmix64's output function over u64."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(h: int, sampling: SamplingParams, pos: int, history: History | None = None) -> Sampled:
    """The token at answer position pos after KV entry h.

    Of a history only bias counts, and only where it decides: see `_biased`.
    """
    if sampling.temperature == 0:
        r = mix(h)
    else:
        r = mix(h ^ mix(sampling.seed) ^ mix((sampling.choice << 32) + pos & MASK))
    if pos >= EOS_FROM and r % 128 == 0:
        token = EOS
    else:
        token = FIRST_PRINTABLE + (r >> 32) % NUM_PRINTABLE
    if history is not None:
        token = _biased(token, history.adjustments.bias)
    if sampling.top_logprobs is None:
        return Sampled(token)
    return Sampled(token, _logprobs(r, token, sampling.top_logprobs))


def _logprobs(r: int, token: int, num_top: int) -> Logprobs:
    """Log probability of a token from the random word behind it, and of the next printable ones."""
    chosen = -((r & 0xFFFF) / 65536)
    is_printable = 0 <= token - FIRST_PRINTABLE < NUM_PRINTABLE
    base = token - FIRST_PRINTABLE if is_printable else 0
    others = ((FIRST_PRINTABLE + (base + i) % NUM_PRINTABLE, chosen - i) for i in range(1, num_top))
    return Logprobs(chosen, ((token, chosen), *others) if num_top else ())


def _biased(token: int, bias: Sequence[tuple[int, float]]) -> int:
    """The first token biased by 100, if any; else `token`, or the next printable character that is
    not biased by -100; the end if there is none."""
    for wanted, value in bias:
        if value >= BIAS_DECIDES:
            return wanted
    banned = {other for other, value in bias if value <= -BIAS_DECIDES}
    if token not in banned:
        return token
    base = FIRST_PRINTABLE if token == EOS else token
    for i in range(NUM_PRINTABLE):
        other = FIRST_PRINTABLE + (base - FIRST_PRINTABLE + i) % NUM_PRINTABLE
        if other not in banned:
            return other
    return EOS


class MockEngine:
    """See `dopd.engine.base.Engine`. Called from the step loop only."""

    def __init__(
        self,
        num_pages: int,
        timings: str = "instant",
        *,
        model: str = "mock",
        page_size: int = PAGE_SIZE,
        max_model_len: int = MAX_MODEL_LEN,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        page_bytes = ENTRY_BYTES * page_size
        self.geometry = replace(GEOMETRY, page_size=page_size, page_bytes=page_bytes)
        self._page_size = page_size
        pool = BytesPool(num_pages, page_bytes)
        self.pool: PagePool = pool
        self._memory = pool.memory
        self.model = model
        self.device = "mock"
        self.vocab_size = VOCAB_SIZE
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset({EOS})
        self.timings_json = ""
        self._timings = timings
        self._step_time: StepTime | None = None
        self._plain: Timings | None = None
        if timings != "instant":
            self._step_time, self.timings_json = load_cost_model(timings)
            self._plain = Timings.from_json(self.timings_json)
        self._sleep = sleep

    def step(self, rows: Sequence[Row]) -> list[Result]:
        """Compute the rows, then sleep what the modelled device would have needed more."""
        begun = time.monotonic()
        results = [self._guarded(row) for row in rows]
        rest = self.step_us(rows) / 1e6 - (time.monotonic() - begun)
        if rest > 0:
            self._sleep(rest)
        return results

    def cost_us(self, work: StepWork) -> int:
        """See `Engine.cost_us`: what the cost model says, less its penalty."""
        return 0 if self._plain is None else self._plain.plain_us(work)

    def step_us(self, rows: Sequence[Row]) -> int:
        """Duration of this step by the cost model."""
        if self._step_time is None:
            return 0
        prefill, decode_seqs, context_sum = [], 0, 0
        for row in rows:
            if len(row.tokens) == 1 and row.pos:
                decode_seqs += 1
                context_sum += row.start + 1
            else:
                prefill.append((len(row.tokens), row.start))
        return self._step_time(self._timings, prefill, decode_seqs, context_sum)

    def _guarded(self, row: Row) -> Result:
        try:
            return self._compute(row)
        except Exception as error:  # noqa: BLE001
            return error

    def _compute(self, row: Row) -> Sampled | Scored | None:
        memory, pages, position = self._memory, row.pages, row.start
        h = H_START
        if position:
            h = _U64.unpack_from(memory, self._offset(pages, position - 1))[0]
        entries = []
        for token in row.tokens:
            h = mix(h ^ token)
            _U64.pack_into(memory, self._offset(pages, position), h)
            position += 1
            entries.append(h)
        drawn = None if row.sampling is None else draw(h, row.sampling, row.pos, row.history)
        if row.targets is None:
            return drawn
        # The entry of a target's own position is the random word behind it.
        prompt = [
            _logprobs(mix(mix(before ^ token)), token, row.num_top)
            for before, token in zip(entries, row.targets, strict=False)
        ]
        return Scored(prompt, drawn)

    def _offset(self, pages: list[int], position: int) -> int:
        page, place = divmod(position, self._page_size)
        return ENTRY_BYTES * (pages[page] * self._page_size + place)


def load_cost_model(timings: str) -> tuple[StepTime, str]:
    """The router's step times, and the calibration as JSON for the hello.

    Imported only where time is modelled: `instant` needs no router. Raises ConfigError.
    """
    try:
        from dopd import _router

        return _router.step_time, _router.timings_json(timings)
    except ImportError as error:
        raise ConfigError(f"mock timings {timings!r} need dopd._router: {error}") from error
    except ValueError as error:
        raise ConfigError(f"mock timings: {error}") from error
