"""What cuda_ipc has and shm has not: handles that lie, copies that take their time, a device that
fails. All over the double of libcuda, whose books balance at the end (`links.Pair`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.errors import LinkError
from dopd.transfer import frames, rest
from dopd.types import LinkHello, LinkMessage, LinkPulled, LinkWelcome, LinkWrite, PoolHandle
from tests.support.cases import cases
from tests.support.gpu.cuda import StubCuda
from tests.support.links import HELLO, Pair, is_closed, shake, stranger, wait_for

PAGE = 4096


def stub(pair: Pair, end: int) -> StubCuda:
    """libcuda of the source (0) or the destination (1)."""
    gpu = (pair.source, pair.destination)[end].gpu
    assert gpu is not None
    return gpu.cuda


def handle_of(pair: Pair) -> PoolHandle:
    """What the source says of its pool."""
    hello = pair.streams[0]._own_hello(HELLO)
    assert hello.pool_handle is not None
    return hello.pool_handle


def answer(pair: Pair, hello: LinkHello) -> str:
    """What the destination says to a stranger: an error, or nothing."""
    with stranger(pair) as sock:
        frames.send_frame(sock, hello, [])
        welcome = frames.receive_handshake(sock, 10)
        assert isinstance(welcome, LinkWelcome)
        return welcome.error


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"device_uuid": bytes(15)}, "device and handle of 15 and 64 bytes, not 16 and 64"),
        ({"handle": bytes(63)}, "device and handle of 16 and 63 bytes"),
        ({"handle": b""}, "device and handle of 16 and 0 bytes"),
        ({"handle": bytes(64)}, r"cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_HANDLE \(400\)"),
        ({"device_uuid": b"x" * 16}, f"GPU {'78' * 16} is not among those of this process"),
        ({"num_bytes": 0}, "pool of 0 bytes is not whole pages of 4096"),
        ({"num_bytes": PAGE + 1}, "pool of 4097 bytes is not whole pages of 4096"),
        ({"num_bytes": 2**63}, "pool of 9223372036854775808 bytes at 1536 of an allocation of"),
        ({"offset": 2**64 - 1}, "bytes at 18446744073709551615 of an allocation of 1050624"),
        ({"offset": 2049}, "pool of 1048576 bytes at 2049 of an allocation of 1050624"),
    ],
)
def test_a_handle_that_lies_is_refused_in_the_handshake(change: dict[str, Any], error: str) -> None:
    with Pair("cuda_ipc") as pair:
        hello = replace(HELLO, pool_handle=replace(handle_of(pair), **change))
        with pytest.raises(LinkError, match=error):
            raise LinkError(answer(pair, hello))
        assert pair.destination.log == []
        stub(pair, 1).check_given_back()


def test_a_hello_without_a_handle_and_one_of_our_own_memory_are_refused() -> None:
    with Pair("cuda_ipc") as pair:
        assert answer(pair, HELLO) == "hello without a pool's handle"
        ours = replace(HELLO, pool_handle=pair.streams[1]._own_hello(HELLO).pool_handle)
        assert "cuIpcOpenMemHandle_v2" in answer(pair, ours)


@pytest.mark.hypothesis
def test_any_handle_is_opened_as_it_says_or_refused() -> None:
    with Pair("cuda_ipc") as pair:
        right = handle_of(pair)
        u64 = st.integers(0, 2**64 - 1)
        handles = st.builds(
            PoolHandle,
            st.sampled_from([right.device_uuid, bytes(16)]) | st.binary(max_size=20),
            st.sampled_from([right.handle, right.handle]) | st.binary(max_size=80),
            st.sampled_from([0, right.offset, right.offset, 2048, 2049]) | u64,
            st.sampled_from([PAGE, right.num_bytes, right.num_bytes + PAGE]) | u64,
        )

        @cases(200)
        @given(handle=handles)
        def check(handle: PoolHandle) -> None:
            is_right = (handle.device_uuid, handle.handle) == (right.device_uuid, right.handle)
            is_right &= handle.num_bytes > 0 and handle.num_bytes % PAGE == 0
            is_right &= handle.offset + handle.num_bytes <= right.num_bytes + 2048
            error = answer(pair, replace(HELLO, pool_handle=handle))
            assert (error == "") == is_right, error

        check()


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (LinkWrite(1, 0, 1, [256]), b""),
        (LinkWrite(1, 0, 2, [3, 2**32 - 1]), b""),
        (LinkWrite(1, 0, 2, [3]), b""),
        (LinkWrite(1, 0, 0, []), b""),
        (LinkWrite(1, 2**32 - 1, 1, [3]), b""),
        (LinkWrite(1, 0, 1, [3]), b"x" * PAGE),
        (LinkWrite(7, 0, 1, [3]), b""),
        (LinkPulled(1, 1), b""),
    ],
)
def test_a_write_that_lies_lands_nowhere(message: LinkMessage, payload: bytes) -> None:
    with Pair("cuda_ipc") as pair, stranger(pair) as sock:
        pair.destination.exposed[1] = [0, 1]
        shake(pair, sock, HELLO)
        frames.send_frame(sock, message, [memoryview(payload)] if payload else [])
        assert is_closed(sock)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert stub(pair, 1).calls("cuMemcpyAsync") == 0
        assert not any(pair.destination.pool.memory)


def test_gpus_that_do_not_reach_each_other_take_the_next_way() -> None:
    with Pair("cuda_ipc+staged") as pair:
        other = replace(handle_of(pair), device_uuid=stub(pair, 1).driver.uuid(1))
        pair.streams[0]._handle = other  # type: ignore[attr-defined]
        stub(pair, 1).has_peers(can_access=False)
        link = pair.connect()
        assert link.transport == "tcp"
        pair.destination.exposed[1] = [8]
        link.write(1, 0, [3])
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        assert bytes(pair.destination.pool.page(8)) == bytes(pair.source.pool.page(3))


def test_gpus_that_do_are_joined_directly() -> None:
    with Pair("cuda_ipc+staged") as pair:
        other = replace(handle_of(pair), device_uuid=stub(pair, 1).driver.uuid(1))
        pair.streams[0]._handle = other  # type: ignore[attr-defined]
        assert pair.connect().transport == "cuda_ipc"


def test_a_handle_is_closed_if_no_link_comes_of_it() -> None:
    with Pair("cuda_ipc") as pair:
        listener: Any = pair.streams[1]
        make_link, opened = listener._make_link, []

        def late(*arguments: Any) -> Any:
            opened.append(stub(pair, 1).live()["imports"])
            raise LinkError("worker ends")

        listener._make_link = late
        with stranger(pair) as sock:
            shake(pair, sock, HELLO)
            assert is_closed(sock)
        wait_for(lambda: not any(stub(pair, 1).live().values()), stub(pair, 1).live)
        assert opened == [1]
        listener._make_link = make_link
        pair.connect()


@pytest.mark.parametrize("kind", ["cuda_ipc", "staged"])
def test_nothing_has_landed_before_its_copy_is_done(kind: str) -> None:
    """T1 and T3, held open: the device has not begun."""
    with Pair(kind) as pair:
        link = pair.connect()
        pair.destination.exposed[1] = [8]
        stub(pair, 1).hold(is_held=True)
        link.write(1, 0, [3])
        wait_for(lambda: stub(pair, 1).live()["queued"] > 0, lambda: "no copy was queued")
        assert not pair.destination.links[0].synchronise(0.05)
        assert "landed" not in pair.destination.names()
        assert kind == "staged" or "written" not in pair.source.names()
        stub(pair, 1).hold(is_held=False)
        pair.settle(lambda: ("written", 1, 1) in pair.source.log, pair.source)
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        assert bytes(pair.destination.pool.page(8)) == bytes(pair.source.pool.page(3))


@pytest.mark.parametrize("kind", ["cuda_ipc", "staged"])
def test_a_page_is_sent_when_it_was_read_and_not_before(kind: str) -> None:
    with Pair(kind) as pair:
        for end in (0, 1):
            stub(pair, end).delay(0.02)
        link = pair.connect()
        pair.destination.exposed[1] = [8, 9]
        link.write(1, 0, [3, 7])
        pair.settle(lambda: ("written", 1, 2) in pair.source.log, pair.source)
        for page in (3, 7):
            pair.source.pool.page(page)[:] = bytes(PAGE)
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        assert bytes(pair.destination.pool.page(8)) == b"\4" * PAGE
        assert bytes(pair.destination.pool.page(9)) == b"\10" * PAGE


@pytest.mark.parametrize("kind", ["cuda_ipc", "staged"])
def test_a_link_is_at_rest_when_its_copies_are(kind: str) -> None:
    """T4: the handle, the buffer and the stream go after the copies, or the double complains."""
    with Pair(kind) as pair:
        pair.connect()
        pair.destination.exposed[1] = [8]
        stub(pair, 1).hold(is_held=True)
        pair.source.links[0].write(1, 0, [3])
        wait_for(lambda: stub(pair, 1).live()["queued"] > 0, lambda: "no copy was queued")
        end = pair.destination.links[0]
        end.abort("test")
        assert not end.synchronise(0.05)
        assert "down" not in pair.destination.names()
        stub(pair, 1).hold(is_held=False)
        assert end.synchronise(10)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)


def test_neighbours_are_copied_in_one_piece() -> None:
    with Pair("cuda_ipc") as pair:
        link = pair.connect()
        pages, targets = [4, 5, 6, 9, 8, 10, 11], [1, 2, 3, 50, 40, 30, 31]
        pair.destination.exposed[1] = targets
        link.write(1, 0, pages)
        pair.settle(lambda: "written" in pair.source.names(), pair.source)
        assert stub(pair, 1).calls("cuMemcpyAsync") == 4
        for page, target in zip(pages, targets, strict=True):
            assert bytes(pair.destination.pool.page(target)) == bytes(pair.source.pool.page(page))


@contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[tuple[Pair, StubCuda]]:
    """A pair whose destination's device is to break; it keeps what it has of it."""
    monkeypatch.setattr(rest, "REST_S", 0.2)
    monkeypatch.setattr("dopd.transfer.cuda_ipc.COPY_S", 0.2)
    monkeypatch.setattr("dopd.transfer.staging.COPY_S", 0.2)
    monkeypatch.setattr("dopd.transfer.stream.CLOSE_S", 0.1)
    with Pair(kind) as pair:
        pair.connect()
        pair.destination.exposed[1] = [8]
        destination = stub(pair, 1)
        yield pair, destination
        link: Any = pair.destination.links[0]
        link._reader.join(10)
        assert not link.synchronise(0)
        assert "landed" not in pair.destination.names()
        assert "down" not in pair.destination.names()
        # Nothing was given back: a copy of it may still be under way.
        assert destination.live()["streams"] == 1
        destination.check()
        pair.destination.gpu = None


@pytest.mark.parametrize("kind", ["cuda_ipc", "staged"])
def test_a_device_that_hangs_keeps_its_pages_for_ever(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broken(monkeypatch, kind) as (pair, destination):
        destination.hold(is_held=True)
        pair.source.links[0].write(1, 0, [3])
        pair.settle(lambda: "down" in pair.source.names(), pair.source)


@pytest.mark.parametrize("kind", ["cuda_ipc", "staged"])
def test_a_device_that_fails_for_good_says_nothing_of_its_copies(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with broken(monkeypatch, kind) as (pair, destination):
        destination.fail("stub_execute", code=700)
        pair.source.links[0].write(1, 0, [3])
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
    # However often it was asked.
    assert caplog.text.count("waiting for a device's copies: cuStreamQuery") == 1


FAILING = (
    "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid_v2", "cuCtxSetCurrent", "cuStreamCreate",
    "cuStreamQuery", "cuStreamDestroy_v2", "cuMemcpyAsync", "cuMemHostAlloc", "cuMemFreeHost",
    "cuMemGetAddressRange_v2", "cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle",
)  # fmt: skip
PAGES, TARGETS = [3, 4, 9], [20, 21, 40]


def is_down(pair: Pair, end: int) -> bool:
    """Whether this end's link is down."""
    return "down" in (pair.source, pair.destination)[end].names()


def one_shipment(pair: Pair) -> None:
    """A link that comes up if it can, carries a shipment as far as it can, and ends."""
    pair.destination.exposed[1] = TARGETS
    try:
        link = pair.streams[0].connect(pair.peer, pair.peer.endpoints[0].address)
    except LinkError:
        assert "up" not in pair.destination.names()
        return
    pair.source.link_up(link, pair.peer)
    link.start()
    link.write(1, 0, PAGES)
    wait_for(
        lambda: "landed" in pair.destination.names() or is_down(pair, 0) or is_down(pair, 1),
        lambda: (pair.source.log, pair.destination.log),
    )
    link.abort("test")
    for end in (0, 1):
        wait_for(partial(is_down, pair, end), lambda: (pair.source.log, pair.destination.log))


def is_clean(found: StubCuda) -> bool:
    """Whether everything was given back."""
    return not any(found.live().values())


def judge(pair: Pair, num_threads: int) -> None:
    """Whatever failed: down once, right or not at all, and nothing is left."""
    for end in (pair.source, pair.destination):
        assert end.names().count("down") == end.names().count("up") <= 1
        assert "down" not in end.names() or end.names()[-1] == "down"
    if "landed" in pair.destination.names():
        for page, target in zip(PAGES, TARGETS, strict=True):
            assert bytes(pair.destination.pool.page(target)) == bytes(pair.source.pool.page(page))
    for end_of in (0, 1):
        found = stub(pair, end_of)
        wait_for(partial(is_clean, found), found.live)
        found.check_given_back()
    wait_for(lambda: threading.active_count() <= num_threads, threading.enumerate)


@pytest.mark.parametrize(("kind", "end"), [("cuda_ipc", 1), ("staged", 0), ("staged", 1)])
def test_every_call_may_fail_once(kind: str, end: int) -> None:
    """Each call of a link's life, from its handshake to its end, by function and number. The source
    of cuda_ipc makes none."""
    with Pair(kind) as pair:
        before = {name: stub(pair, end).calls(name) for name in FAILING}
        one_shipment(pair)
        assert "landed" in pair.destination.names()
        calls = {name: stub(pair, end).calls(name) - before[name] for name in FAILING}
    assert sum(calls.values()) > 8, calls
    cases = [(name, nth) for name, count in calls.items() for nth in range(1, count + 1)]
    for name, nth in cases:
        with Pair(kind) as pair:
            num_threads = threading.active_count()
            stub(pair, end).fail(name, nth)
            one_shipment(pair)
            judge(pair, num_threads)
