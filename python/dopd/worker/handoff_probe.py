"""How long pages take from one process to another, over a transport of this machine.

`python -m dopd.worker.handoff_probe` is the destination of a pair: told a transport and a pool, it
says where it listens and lives as long as its stdin. `Source` is the other end. Every shipment
lands on the same pages, and its End is answered with a Go, so that one way back is included.
Called by `dopd bench engine` and by bench/transfer.py.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dopd.errors import DopdError
from dopd.kv.base import PagePool
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer.base import Link, LinkIdentity
from dopd.transfer.pairing import Transports
from dopd.types import Endpoint, LinkEnd, Peer, Role
from dopd.worker.config import WorkerConfig
from dopd.worker.transports import open_transports

WAIT_S = 60.0
# An endpoint as JSON.
TOLD_CHARS_MAX = 4096
TOKEN = "probe"


@dataclass(frozen=True, slots=True)
class Place:
    """The pool at either end: the lower half is sent, the upper half is written.

    device: "cpu", or as torch names it.
    """

    page_bytes: int
    num_pages: int
    device: str = "cpu"

    def pool(self) -> PagePool:
        """Made, and filled with something."""
        if self.device == "cpu":
            pool = BytesPool(self.num_pages, self.page_bytes)
            for page in range(self.num_pages):
                pool.page(page)[:] = bytes([page % 251 + 1]) * self.page_bytes
            return pool
        from dopd.engine.torch_device import scratch_pool

        return scratch_pool(self.num_pages, self.page_bytes, self.device)


class Events:
    """What either end hears of its link."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self.up, self.answered = threading.Event(), threading.Event()
        # Pages that are not yet written: End follows the last of them.
        self.unwritten = 0
        self.link: Link | None = None

    def wants(self, peer: Peer) -> bool:
        """See `LinkEvents`; so are the others."""
        return True

    def link_up(self, link: Link, peer: Peer | None) -> None:
        """Remember it."""
        self.link = link
        self.up.set()

    def link_down(self, link: Link) -> None:
        """The other process has ended."""

    def begin(self, link: Link, nonce: int) -> None:
        """Not sent here."""

    def go(self, link: Link, nonce: int, num_pages: int, first: int = 0) -> None:
        """The destination has everything."""
        self.answered.set()

    def targets(self, link: Link, nonce: int, first: int, count: int) -> list[int]:
        """The upper half of the pool."""
        start = self._num_pages // 2 + first
        return list(range(start, start + count))

    def landed(self, link: Link, nonce: int, first: int, count: int) -> None:
        """Nothing to do."""

    def written(self, link: Link, nonce: int, count: int) -> None:
        """From the link's thread, as a worker does."""
        self.unwritten -= count
        if not self.unwritten:
            link.end(LinkEnd(nonce, ok=True))

    def end(self, link: Link, end: LinkEnd) -> None:
        """Say so."""
        link.go(end.nonce, [])


def open_end(transport: str, name: str, pool: PagePool, events: Events) -> Transports:
    """One end, listening. Raises ConfigError if this machine has no such transport."""
    config = WorkerConfig(
        role=Role.MIXED,
        join="127.0.0.1:1",
        join_token=TOKEN,
        mock=True,
        name=name,
        transports=transport,
    )
    identity = LinkIdentity(name, 1, 1, TOKEN)
    transports = open_transports(config, identity, pool, events)
    transports.start()
    return transports


class Source:
    """The sending end of a pair. pid: the other one's."""

    def __init__(self, transport: str, place: Place, process: subprocess.Popen[str]) -> None:
        """Raises DopdError if no link comes up."""
        assert process.stdout is not None
        self.pid = process.pid
        self.pool = place.pool()
        self._events = Events(place.num_pages)
        self._transports = open_end(transport, "source", self.pool, self._events)
        with contextlib.ExitStack() as left:
            left.callback(self.close)
            told = process.stdout.readline(TOLD_CHARS_MAX)
            if not told:
                raise DopdError(f"the destination of {transport} ended before it listened")
            endpoint = Endpoint(**json.loads(told))
            self.transport = endpoint.transport
            self._transports.dial(Peer("destination", 1, (endpoint,)))
            if not self._events.up.wait(WAIT_S):
                raise DopdError(f"no link over {transport} within {WAIT_S:g} s")
            self.seconds(1, 1)
            left.pop_all()

    def seconds(self, num_shipments: int, num_pages: int) -> float:
        """Time of so many, one behind the other, until the last is known to be there.

        num_pages: at most half of the pool.
        """
        link = self._events.link
        assert link is not None
        self._events.answered.clear()
        self._events.unwritten = num_shipments * num_pages
        start = time.perf_counter()
        for _ in range(num_shipments):
            link.write(1, 0, list(range(num_pages)))
        if not self._events.answered.wait(WAIT_S):
            raise DopdError("the last shipment did not arrive")
        return time.perf_counter() - start

    def close(self) -> None:
        """End the link."""
        self._transports.close()


@contextlib.contextmanager
def pair(transport: str, place: Place) -> Iterator[Source]:
    """A source here, a destination in a process of its own. Raises DopdError."""
    command = [sys.executable, "-m", "dopd.worker.handoff_probe", transport]
    with subprocess.Popen(
        [*command, json.dumps(asdict(place))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        try:
            with contextlib.closing(Source(transport, place, process)) as source:
                yield source
        finally:
            # It ends with its stdin, whatever it is doing.
            process.stdin.close()


def main(argv: list[str]) -> int:
    """Be the destination: TRANSPORT and a `Place` as JSON."""
    transport, place = argv[0], Place(**json.loads(argv[1]))
    pool = place.pool()
    try:
        end = open_end(transport, "destination", pool, Events(place.num_pages))
    except DopdError as error:
        sys.stderr.write(f"error: destination of {transport}: {error}\n")
        return 1
    (endpoint, *_) = end.endpoints
    told: dict[str, Any] = asdict(endpoint)
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
