"""One streamed answer on the terminal: its text as it comes, then how fast it was."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dopd.cli import console

# A model may write escape sequences; a terminal must not obey them.
CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}
FAINT = "\x1b[2m{}\x1b[0m"


@dataclass(slots=True)
class Answer:
    """What came so far. Times are seconds after the request was sent."""

    pieces: list[str] = field(default_factory=list)
    start_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    last_s: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    is_shown: bool = True

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    def follow(self, events: Iterable[dict[str, Any]]) -> None:
        """Take the events of a chat or a completion, and show their text."""
        for event in events:
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or ():
                text = (choice.get("delta") or choice).get("content") or choice.get("text")
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                if text:
                    self._take(text)

    def _take(self, text: str) -> None:
        self.last_s = time.perf_counter() - self.start_s
        if self.first_s is None:
            self.first_s = self.last_s
        self.pieces.append(text)
        if self.is_shown:
            console.stream(text.translate(CONTROLS) if sys.stdout.isatty() else text)

    def timings(self) -> dict[str, float | None]:
        """TTFT in milliseconds and tokens per second after the first; None: too short to say."""
        tokens = self.usage.get("completion_tokens") or 0
        span_s = self.last_s - (self.first_s or 0.0)
        is_long = tokens > 1 and span_s > 0
        return {
            "ttft_ms": None if self.first_s is None else round(1e3 * self.first_s, 3),
            "tokens_per_s": round((tokens - 1) / span_s, 3) if is_long else None,
        }

    def summary(self) -> str:
        """One line about length and speed, for people."""
        timings = self.timings()
        parts = []
        if tokens := self.usage.get("completion_tokens"):
            parts.append(f"{tokens} tokens")
        if (speed := timings["tokens_per_s"]) is not None:
            parts.append(f"{speed:.1f} tokens/s")
        if (ttft := timings["ttft_ms"]) is not None:
            parts.append(f"first after {ttft:.0f} ms")
        if self.finish_reason == "length":
            parts.append("cut at its longest")
        return ", ".join(parts)


def note_faintly(text: str) -> None:
    """A line about the run that does not ask for attention; only on a terminal."""
    if text and sys.stderr.isatty():
        console.note(FAINT.format(text) if console.has_colour(sys.stderr) else text)
