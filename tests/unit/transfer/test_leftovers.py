"""What links leave behind: no descriptor, no thread, no memory, whoever dies when."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from dopd.errors import LinkError
from dopd.types import Endpoint, Peer
from tests.support.link_peer import NONCE
from tests.support.links import HELLO, NUM_PAGES, WAIT_S, Pair, shake, stranger, wait_for

KINDS = pytest.mark.parametrize("kind", ["tcp", "shm", "cuda_ipc", "nccl", "staged"])
# Over nccl an end that goes at once may be gone before the other one has joined, and is never up.
FRAMES_ONLY = pytest.mark.parametrize("kind", ["tcp", "shm", "cuda_ipc", "staged"])
CONNECTS = 200


def open_files() -> Counter[tuple[int, int]]:
    """Device and inode of every descriptor of ours, and how many there are of it."""
    found: Counter[tuple[int, int]] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.stat(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        found[status.st_dev, status.st_ino] += 1
    return found


@contextmanager
def peer(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.link_peer", *arguments]
    # It is killed, and leaves what its doubles have there.
    with tempfile.TemporaryDirectory(prefix="dopd-peer-") as folder:
        env = {**os.environ, "TMPDIR": folder}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                yield process
            finally:
                process.kill()


@KINDS
def test_two_hundred_links_leave_nothing_behind(kind: str) -> None:
    threads_before = threading.active_count()
    with Pair(kind) as pair:
        files, threads = open_files(), threading.active_count()
        for number in range(CONNECTS):
            if number % 3:
                # A peer that leaves at once, or is refused, with its memory in the handshake.
                hello = HELLO if number % 3 == 1 else replace(HELLO, join_token="wrong")
                with stranger(pair) as sock:
                    shake(pair, sock, hello)
            else:
                link = pair.connect()
                link.abort("test")
                assert link.synchronise(10)
        wait_for(
            lambda: open_files() <= files and threading.active_count() <= threads,
            lambda: (open_files() - files, threading.enumerate()),
        )
    wait_for(lambda: threading.active_count() <= threads_before, threading.enumerate)


@FRAMES_ONLY
def test_a_link_that_comes_up_while_its_worker_ends_is_not_kept(kind: str) -> None:
    with Pair(kind) as pair:
        source = pair.streams[0]
        make_link = source._make_link

        def late(*arguments: Any) -> Any:
            source.close()
            return make_link(*arguments)

        source._make_link = late
        with pytest.raises(LinkError, match="worker ends"):
            source.connect(pair.peer, pair.peer.endpoints[0].address)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)


@KINDS
def test_a_source_killed_in_mid_copy_leaves_no_page_written_and_no_memory(kind: str) -> None:
    with Pair(kind) as pair:
        destination = pair.destination
        destination.exposed[NONCE] = [*list(range(1, NUM_PAGES)), 1]
        before = open_files()
        endpoint = pair.peer.endpoints[0]
        own = f"{endpoint.transport},{endpoint.address},{endpoint.host}"
        with peer("source", kind, own) as source:
            pair.settle(lambda: "landed" in destination.names(), destination)
            source.kill()
            source.wait(WAIT_S)
            pair.settle(lambda: "down" in destination.names(), destination)
        assert destination.names()[-1] == "down"
        assert not any(destination.pool.page(0))
        # Its memory file was open here: with it the last hold on its pages is gone.
        wait_for(lambda: open_files() <= before, open_files)


@KINDS
def test_a_destination_killed_in_mid_copy_frees_its_source(kind: str) -> None:
    with Pair(kind) as pair, peer("destination", kind) as destination:
        assert destination.stdout is not None
        ways = [Endpoint(*text.split(",")) for text in destination.stdout.readline().split()]
        pair.transports[0].dial(Peer("destination", 2, tuple(ways)))
        pair.settle(lambda: pair.source.links, pair.source)
        link = pair.source.links[0]
        for _ in range(50):
            link.write(NONCE, 0, list(range(NUM_PAGES)))
        pair.settle(lambda: "written" in pair.source.names(), pair.source)
        destination.kill()
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        assert link.synchronise(0)
