"""One connection's side of HTTP/1.1: a parser for streamed answers that looks at each byte once.

A general client costs more per token than the server under test. This one knows what it reads: a
status line, headers, a chunked body of server-sent events, or a short body with a length.
"""

from __future__ import annotations

import enum
import re

HEAD_BYTES_MAX = 64 << 10
CHUNK_LINE_BYTES_MAX = 256
BODY_BYTES_MAX = 16 << 20
# Enough for the last text, the usage and the end mark.
TAIL_BYTES = 2048
COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
PROMPT_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
# The start of a text that is not empty, whichever the API calls it.
TEXT = re.compile(rb'"(?:text|content)"\s*:\s*"[^"]')
TEXT_BYTES_MAX = 16
ERROR = re.compile(rb'"error"\s*:\s*\{\s*"message"\s*:\s*"((?:[^"\\]|\\.)*)"')


class ProtocolError(Exception):
    """The server sent what is not HTTP/1.1 as this client knows it."""


class State(enum.Enum):
    """What the next byte belongs to."""

    HEAD = enum.auto()
    LENGTH = enum.auto()
    CHUNK_LINE = enum.auto()
    CHUNK = enum.auto()
    TRAILER = enum.auto()
    DONE = enum.auto()


class Response:
    """One answer, fed with bytes as they come; `state` is DONE when it is complete."""

    __slots__ = ("_left", "_raw", "body", "can_reuse", "events", "is_done_seen", "state", "status")

    def __init__(self) -> None:
        self.state = State.HEAD
        self.status = 0
        self.can_reuse = True
        # Pieces of text seen so far: what a client can show. Roles and usage are none.
        self.events = 0
        self.is_done_seen = False
        # The end of the body (the usage is there), or a whole error.
        self.body = bytearray()
        self._raw = bytearray()
        self._left = 0

    def feed(self, data: bytes) -> int:
        """Take `data`; returns the number of pieces of text that came with it."""
        before = self.events
        self._raw += data
        while self._step():
            pass
        return self.events - before

    def _step(self) -> bool:
        """Take one piece from `_raw`; False if it holds none."""
        if self.state is State.CHUNK_LINE:
            return self._chunk_line()
        if self.state in (State.CHUNK, State.LENGTH):
            return self._content()
        if self.state is State.HEAD:
            return self._head()
        if self.state is State.TRAILER:
            return self._trailer()
        return False

    def _head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > HEAD_BYTES_MAX:
                raise ProtocolError(f"more than {HEAD_BYTES_MAX} bytes of headers")
            return False
        lines = bytes(self._raw[:end]).lower().split(b"\r\n")
        del self._raw[: end + 4]
        if not lines[0].startswith(b"http/1.1 "):
            raise ProtocolError(f"not an HTTP/1.1 answer: {lines[0][:40]!r}")
        self.status = int(lines[0][9:12])
        headers = dict(line.split(b":", 1) for line in lines[1:] if b":" in line)
        self.can_reuse = headers.get(b"connection", b"").strip() != b"close"
        if headers.get(b"transfer-encoding", b"").strip() == b"chunked":
            self.state = State.CHUNK_LINE
        else:
            self._left = int(headers.get(b"content-length", b"0"))
            self.state = State.LENGTH if self._left else State.DONE
        return True

    def _chunk_line(self) -> bool:
        end = self._raw.find(b"\r\n")
        if end < 0:
            if len(self._raw) > CHUNK_LINE_BYTES_MAX:
                raise ProtocolError("a chunk without a length")
            return False
        self._left = int(self._raw[:end].split(b";", 1)[0], 16)
        del self._raw[: end + 2]
        self.state = State.CHUNK if self._left else State.TRAILER
        return True

    def _content(self) -> bool:
        is_chunk = self.state is State.CHUNK
        needed = self._left + 2 if is_chunk else self._left
        if needed > BODY_BYTES_MAX:
            raise ProtocolError(f"a piece of {needed} bytes")
        if len(self._raw) < needed:
            return False
        piece = self._raw[: self._left]
        del self._raw[:needed]
        self._take(piece)
        self.state = State.CHUNK_LINE if is_chunk else State.DONE
        return True

    def _take(self, piece: bytearray) -> None:
        if self.status != 200:
            self.body += piece[: HEAD_BYTES_MAX - len(self.body)]
            return
        # An event may be cut anywhere: look from a little before, count what ends in the new part.
        before = self.body[-TEXT_BYTES_MAX:]
        self.events += sum(found.end() > len(before) for found in TEXT.finditer(before + piece))
        # The end of the stream is kept for its usage.
        self.body = self.body[-TAIL_BYTES:] + piece
        if b"[DONE]" in self.body:
            self.is_done_seen = True

    def _trailer(self) -> bool:
        end = self._raw.find(b"\r\n")
        if end < 0:
            return False
        is_last = end == 0
        del self._raw[: end + 2]
        if is_last:
            self.state = State.DONE
        return True

    def error(self) -> str:
        """The message of an error event in the tail of a stream that broke off."""
        found = ERROR.findall(bytes(self.body))
        return found[-1].decode(errors="replace") if found else "no error was given"

    def completion_tokens(self) -> int | None:
        """Tokens of the answer as the server counted them in its last event."""
        return self._last(COMPLETION_TOKENS)

    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, the same way."""
        return self._last(PROMPT_TOKENS)

    def _last(self, pattern: re.Pattern[bytes]) -> int | None:
        found = pattern.findall(bytes(self.body))
        return int(found[-1]) if found else None
