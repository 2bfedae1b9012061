"""The fault proxy does what it is told, or no test that uses it proves anything."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.faults import proxy as proxies
from tests.support.faults.proxy import Pipe, Plan, Proxy, Then, Way
from tests.support.processes import wait_for

WAIT_S = 10.0
SHORT_S = 0.2


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends everything back."""

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield "{}:{}".format(*listener.getsockname())
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(WAIT_S)


def dial(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def receive(sock: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes and (more := sock.recv(num_bytes - len(data))):
        data += more
    return data


def test_bytes_pass_both_ways_in_order(echo: str) -> None:
    sent = bytes(range(256)) * 4_000
    with Proxy(echo) as proxy, dial(proxy) as sock:
        threading.Thread(target=sock.sendall, args=(sent,), daemon=True).start()
        assert receive(sock, len(sent)) == sent
        assert proxy.num_open == 1
        sock.close()
        wait_for(lambda: proxy.num_open == 0, "the connection is gone")


def test_latency_and_its_jitter(echo: str) -> None:
    with Proxy(echo, seed=1) as proxy:
        proxy.plan = lambda _: Plan(out=Way(latency_s=0.1, jitter_s=0.05))
        with dial(proxy) as sock:
            times = []
            for _ in range(5):
                begun = time.monotonic()
                sock.sendall(b"x")
                assert receive(sock, 1) == b"x"
                times.append(time.monotonic() - begun)
    assert min(times) >= 0.05
    assert max(times) - min(times) > 0.001


def test_bandwidth(echo: str) -> None:
    with Proxy(echo) as proxy:
        proxy.plan = lambda _: Plan(out=Way(bytes_per_s=100_000))
        with dial(proxy) as sock:
            begun = time.monotonic()
            sock.sendall(bytes(40_000))
            assert len(receive(sock, 40_000)) == 40_000
    assert time.monotonic() - begun >= 0.4


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
def test_cut_after_an_exact_byte(echo: str, then: Then) -> None:
    with Proxy(echo) as proxy:
        proxy.plan = lambda k: Plan(back=Way(after=7, then=then)) if k == 0 else Plan()
        with dial(proxy) as sock:
            sock.sendall(b"0123456789")
            assert receive(sock, 7) == b"0123456"
            if then is Then.CLOSE:
                assert sock.recv(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        with dial(proxy) as sock:
            sock.sendall(b"0123456789")
            assert receive(sock, 10) == b"0123456789"


@pytest.mark.parametrize("then", [Then.STALL, Then.HALF_OPEN])
def test_a_stalled_connection_stays_open_and_says_nothing(echo: str, then: Then) -> None:
    with Proxy(echo) as proxy:
        proxy.plan = lambda _: Plan(back=Way(after=3, then=then))
        with dial(proxy) as sock:
            sock.sendall(b"0123456789")
            assert receive(sock, 3) == b"012"
            sock.settimeout(SHORT_S)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            assert proxy.num_open == 1


def test_hold_and_release_lose_nothing(echo: str) -> None:
    with Proxy(echo) as proxy, dial(proxy) as sock:
        sock.sendall(b"a")
        assert receive(sock, 1) == b"a"
        proxy.hold(out=False)
        sock.sendall(b"b")
        sock.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        proxy.release()
        sock.settimeout(WAIT_S)
        assert receive(sock, 1) == b"b"


def test_reset_refuse_and_release(echo: str) -> None:
    with Proxy(echo) as proxy:
        with dial(proxy) as sock:
            sock.sendall(b"a")
            assert receive(sock, 1) == b"a"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        proxy.refuse()
        with pytest.raises(ConnectionResetError), dial(proxy) as sock:
            sock.recv(1)
        proxy.release()
        with dial(proxy) as sock:
            sock.sendall(b"c")
            assert receive(sock, 1) == b"c"
        assert len(proxy.begun_s) == 3


def test_half_open_now(echo: str) -> None:
    with Proxy(echo) as proxy, dial(proxy) as sock:
        sock.sendall(b"a")
        assert receive(sock, 1) == b"a"
        proxy.half_open()
        sock.sendall(b"b")
        sock.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_flapping_passes_everything_in_the_end(echo: str) -> None:
    with Proxy(echo) as proxy, dial(proxy) as sock:
        proxy.flap(0.05, 0.05)
        begun = time.monotonic()
        for value in range(10):
            sock.sendall(bytes([value]))
            assert receive(sock, 1) == bytes([value])
            time.sleep(0.02)
        assert time.monotonic() - begun > 0.25
        proxy.release()


def test_one_bit_at_an_offset_and_a_filter(echo: str) -> None:
    def shout(pipe: Pipe, data: bytes) -> bytes:
        pipe.later(0.01, b"!")
        return data.upper()

    with Proxy(echo) as proxy:
        proxy.plan = lambda k: Plan(out=Way(flip_at=2) if k == 0 else Way(filter=shout))
        with dial(proxy) as sock:
            sock.sendall(b"ab")
            assert receive(sock, 2) == b"ab"
            sock.sendall(b"cd")
            assert receive(sock, 2) == b"bd"
        with dial(proxy) as sock:
            sock.sendall(b"ab")
            assert receive(sock, 3) == b"AB!"


def test_nobody_upstream_is_a_reset() -> None:
    with Proxy() as proxy, pytest.raises(ConnectionResetError), dial(proxy) as sock:
        sock.recv(1)


def test_a_proxy_that_closes_while_a_connection_ends_leaves_no_socket(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled a second time, where the first end is awaited: both sockets are closed as well."""
    is_ending = threading.Event()

    async def for_ever(tasks: object) -> None:
        is_ending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(proxies, "stop", for_ever)
    with Proxy(echo) as proxy:
        with dial(proxy) as sock:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
            (one,) = proxy._open
        assert is_ending.wait(WAIT_S)
    assert one.upstream is not None
    assert (one.dialler.fileno(), one.upstream.fileno()) == (-1, -1)
