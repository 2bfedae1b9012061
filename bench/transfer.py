"""How fast pages travel from one process to another: shm and TCP on loopback, beside memcpy.

Pages of SmolLM2 in bfloat16 (360 KiB); a shipment is 512 tokens of it, 32 pages, 11.8 MB. The three
take turns in one run, so that a neighbour hits them alike. *Rate*: shipments one behind the other
until the destination has the last. *Shipment*: one alone, and *page*: one page alone, as the last
of a hand-off is: from the first Write until its End, which a source says when all is written, is
known to have arrived; one way back included. memcpy copies the same pages inside of one process.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from bench.common import Meter, finish
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer.base import Link, LinkIdentity
from dopd.transfer.pairing import Transports
from dopd.transfer.shm import ShmTransport
from dopd.transfer.stream import StreamTransport
from dopd.transfer.tcp import TcpTransport
from dopd.types import Endpoint, LinkEnd, Peer

PAGE_BYTES = 23_040 * 16
SHIPMENT_PAGES = 32
NUM_PAGES = 128
SHIPMENTS = 40
ROUNDS = 9
ALONE = 10
WAIT_S = 60.0
KINDS = ("shm", "tcp")


class Events:
    """Both ends: every shipment lands on the same pages, and its End is answered with a Go."""

    def __init__(self) -> None:
        self.pool = BytesPool(NUM_PAGES, PAGE_BYTES)
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
        start = NUM_PAGES // 2 + first
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


def open_transports(kind: str, worker: str, events: Events) -> Transports:
    """One end, listening."""
    identity = LinkIdentity(worker, 1, 1, "bench")
    stream: StreamTransport
    if kind == "shm":
        stream = ShmTransport(identity, events.pool, events)
    else:
        stream = TcpTransport("127.0.0.1", identity, events.pool, events)
    transports = Transports([stream], events)
    transports.start()
    return transports


def be_destination(kind: str) -> int:
    """The other process: says where it listens, and lives as long as its stdin."""
    events = Events()
    (endpoint,) = open_transports(kind, "destination", events).endpoints
    print(endpoint.transport, endpoint.address, endpoint.host, flush=True)
    sys.stdin.read()
    return 0


class Source:
    """The sending end of a pair. pid: the other one's."""

    def __init__(self, kind: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.pid = process.pid
        self.events = Events()
        for page in range(NUM_PAGES):
            self.events.pool.page(page)[:] = bytes([page % 251 + 1]) * PAGE_BYTES
        endpoint = Endpoint(*process.stdout.readline().rstrip("\n").split(" "))
        open_transports(kind, "source", self.events).dial(Peer("destination", 1, (endpoint,)))
        if not self.events.up.wait(WAIT_S):
            raise RuntimeError(f"no link over {kind}")
        self.seconds(1)

    def seconds(self, num_shipments: int, num_pages: int = SHIPMENT_PAGES) -> float:
        """Time of so many, until the last is known to be there."""
        link = self.events.link
        assert link is not None
        self.events.answered.clear()
        self.events.unwritten = num_shipments * num_pages
        start = time.perf_counter()
        for _ in range(num_shipments):
            link.write(1, 0, list(range(num_pages)))
        if not self.events.answered.wait(WAIT_S):
            raise RuntimeError("the last shipment did not arrive")
        return time.perf_counter() - start


@contextlib.contextmanager
def pair(kind: str) -> Iterator[Source]:
    """A source here, a destination in a process of its own."""
    command = [sys.executable, "-m", "bench.transfer", "--destination", kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Source(kind, process)
        assert process.stdin is not None
        process.stdin.close()


def memcpy_seconds(pool: BytesPool, num_shipments: int) -> float:
    """The same pages to the same places, inside of this process."""
    start = time.perf_counter()
    for _ in range(num_shipments):
        for page in range(SHIPMENT_PAGES):
            pool.page(NUM_PAGES // 2 + page)[:] = pool.page(page)
    return time.perf_counter() - start


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median, best and worst."""
    chosen = {"median": statistics.median(seconds), "best": min(seconds), "worst": max(seconds)}
    return {name: 1e3 * value for name, value in chosen.items()}


def main(argv: list[str]) -> int:
    """Measure all three in turns; `--destination KIND` is the other process of a pair."""
    if argv[:1] == ["--destination"]:
        return be_destination(argv[1])
    gib = SHIPMENTS * SHIPMENT_PAGES * PAGE_BYTES / (1 << 30)
    rates: dict[str, list[float]] = {"memcpy": [], **{kind: [] for kind in KINDS}}
    shipment: dict[str, list[float]] = {kind: [] for kind in KINDS}
    page: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    foreign: list[float] = []
    with contextlib.ExitStack() as stack:
        sources = {kind: stack.enter_context(pair(kind)) for kind in KINDS}
        pool = sources["shm"].events.pool
        memcpy_seconds(pool, 1)
        for _ in range(ROUNDS):
            rates["memcpy"].append(gib / memcpy_seconds(pool, SHIPMENTS))
            for kind, source in sources.items():
                meter = Meter({"source": os.getpid(), "destination": source.pid})
                with meter.running():
                    rates[kind].append(gib / source.seconds(SHIPMENTS))
                cpu[kind] += sum(meter.used_ns.values()) / 1e9 / (ROUNDS * gib)
                foreign.append(meter.foreign)
                shipment[kind] += [source.seconds(1) for _ in range(ALONE)]
                page[kind] += [source.seconds(1, 1) for _ in range(ALONE)]
    result: dict[str, Any] = {
        "page_bytes": PAGE_BYTES,
        "shipment_megabytes": SHIPMENT_PAGES * PAGE_BYTES / 1e6,
        "rounds": ROUNDS,
        "foreign_cores": {"median": statistics.median(foreign), "worst": max(foreign)},
        "gib_per_s": {
            k: {"median": statistics.median(v), "best": max(v)} for k, v in rates.items()
        },
        "shipment_ms": {kind: milliseconds(times) for kind, times in shipment.items()},
        "page_ms": {kind: milliseconds(times) for kind, times in page.items()},
        "cpu_s_per_gib": cpu,
        "shm_to_memcpy": statistics.median(rates["shm"]) / statistics.median(rates["memcpy"]),
        "shm_to_tcp": statistics.median(rates["shm"]) / statistics.median(rates["tcp"]),
    }
    return finish("transfer", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
