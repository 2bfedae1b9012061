"""One end of a data link in a process of its own, to be killed: `-m tests.support.link_peer`.

source KIND ENDPOINT...: writes to the destination for ever. destination KIND: prints its endpoints
and takes what comes. An endpoint is written TRANSPORT,ADDRESS,HOST.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from dopd.transfer.base import LinkIdentity
from dopd.transfer.pairing import Transports
from dopd.types import Endpoint, Peer
from tests.support.gpu.cuda import FOLDER_VARIABLE
from tests.support.links import (
    LAYOUT,
    NUM_PAGES,
    PAGE_BYTES,
    TOKEN,
    Recorder,
    is_of_device,
    open_stream,
    recorder,
)

NONCE = 1


def write_for_ever(source: Recorder, transports: Transports, endpoints: list[str]) -> None:
    for page in range(NUM_PAGES):
        source.pool.page(page)[:] = b"x" * PAGE_BYTES
    ways = tuple(Endpoint(*text.split(",")) for text in endpoints)
    transports.dial(Peer("destination", 2, ways))
    with source.changed:
        source.changed.wait_for(lambda: source.links)
    while True:
        source.links[0].write(NONCE, 0, list(range(NUM_PAGES)))
        with source.changed:
            source.changed.wait_for(lambda: source.log[-1][0] == "written")
            source.log.clear()


def main(role: str, kind: str, endpoints: list[str]) -> None:
    folder = Path(os.environ[FOLDER_VARIABLE]) if is_of_device(kind) else None
    events = recorder(kind, NUM_PAGES, PAGE_BYTES, folder)
    # The order of a test: first the source, then the destination.
    identity = LinkIdentity(role, 1 if role == "source" else 2, LAYOUT, TOKEN)
    transports = Transports([open_stream(kind, identity, events)], events)
    transports.start()
    if role == "source":
        write_for_ever(events, transports, endpoints)
    events.exposed[NONCE] = list(range(NUM_PAGES))
    print(*(f"{e.transport},{e.address},{e.host}" for e in transports.endpoints), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
