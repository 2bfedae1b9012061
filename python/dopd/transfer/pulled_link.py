"""A link whose pages are fetched by the destination, which then says Pulled: `shm`, `cuda_ipc`.

A Write carries no payload. For the source it is completed when Pulled comes, and so its End goes
out while it still holds the pages (T1, T3). `nccl` ends its writes in the same way.
"""

from __future__ import annotations

import time
from collections import deque

from dopd.errors import LinkError
from dopd.transfer.stream_link import QUEUE_MAX, LinkParts, StreamLink
from dopd.types import LinkPulled


class PulledLink(StreamLink):
    """See `StreamLink`."""

    def __init__(self, parts: LinkParts) -> None:
        super().__init__(parts)
        # Writes that the peer has not pulled, oldest first: nonce, pages, when. Bounded by
        # QUEUE_MAX. Appended by the writer before it sends, taken away by the reader.
        self._sent: deque[tuple[int, int, float]] = deque()
        self._pulled_at = 0.0

    def _note_sent(self, nonce: int, count: int) -> None:
        """Writer thread: a Write goes out now."""
        if len(self._sent) >= QUEUE_MAX:
            raise LinkError(f"{QUEUE_MAX} writes are sent, the peer does not pull")
        self._sent.append((nonce, count, time.monotonic()))

    def _pulled(self, message: LinkPulled) -> None:
        if not self._sent or self._sent[0][:2] != (message.nonce, message.count):
            raise LinkError(
                f"{message.count} pages of shipment {message.nonce:#x} pulled, which is not what "
                "was written next"
            )
        _, count, sent_at = self._sent.popleft()
        now = time.monotonic()
        # Behind others it had to wait until these were pulled.
        self._measure(count * self._pool.page_bytes, now - max(sent_at, self._pulled_at))
        self._pulled_at = now
        self._events.written(self, message.nonce, count)
