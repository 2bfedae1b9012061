"""Abuse over real sockets: the server answers as before after it, and its memory has not grown."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, serve

GROWTH_MAX = 64 << 20
TIMEOUT_S = 30.0
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
# The answer that must be the same after each abuse: greedy, so only these tokens.
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of its own: its memory is measured, and slow clients are cut soon."""
    env = {"DOPD_HTTP__READ_TIMEOUT_MS": "1000", "DOPD_LIMITS__SLOW_READER_TIMEOUT_MS": "1000"}
    with serve("--mock", env=env) as server:
        # What every server holds once it has worked: allocator, pools, caches.
        for _ in range(50):
            server.complete(PROMPT, max_tokens=8)
        yield server


def rss(server: Server) -> int:
    """Resident memory of the router in bytes."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def dial(server: Server) -> socket.socket:
    host, port = server.http.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def send(server: Server, raw: bytes) -> bytes:
    """Sends `raw` and reads until the server closes; it may close before it has read all."""
    with contextlib.closing(dial(server)) as client:
        with contextlib.suppress(OSError):
            client.sendall(raw)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65_536):
                answer += piece
        return answer


def post(body: bytes) -> bytes:
    return f"{HEAD}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def slow_heads(server: Server) -> None:
    """200 clients that send a byte of a head now and then; each is cut after its second."""
    clients = [dial(server) for _ in range(200)]
    for byte in b"GET /":
        for client in clients:
            client.sendall(bytes([byte]))
    for client in clients:
        with contextlib.closing(client), contextlib.suppress(ConnectionError):
            assert not client.recv(1024).startswith(b"HTTP/1.1 200")


def slow_bodies(server: Server) -> None:
    """50 clients whose body stops in the middle."""
    clients = [dial(server) for _ in range(50)]
    for client in clients:
        client.sendall(f"{HEAD}content-length: 100\r\n\r\n{{".encode())
    for client in clients:
        with contextlib.closing(client):
            assert client.recv(1024).startswith(b"HTTP/1.1 408")


def huge_heads(server: Server) -> None:
    """A megabyte in one header, and in ten thousand."""
    for headers in (f"a: {'b' * (1 << 20)}\r\n", "a: b\r\n" * 10_000):
        answer = send(server, f"GET /health HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 431") or answer == b"", answer[:100]


def half_requests(server: Server) -> None:
    """500 clients that leave in the middle of a request."""
    whole = post(b'{"model":"mock","prompt":"hi","max_tokens":100}')
    for index in range(500):
        with contextlib.closing(dial(server)) as client:
            client.sendall(whole[: 1 + index * (len(whole) - 1) // 500])


def left_streams(server: Server) -> None:
    """100 clients that leave in the middle of an answer."""
    body = b'{"model":"mock","prompt":"hi","max_tokens":2000,"stream":true}'
    for _ in range(100):
        with contextlib.closing(dial(server)) as client:
            client.sendall(post(body))
            assert client.recv(16).startswith(b"HTTP/1.1 200")


def pipelining(server: Server) -> None:
    """10,000 requests in a row, without reading an answer before the last was sent."""
    with contextlib.closing(dial(server)) as client:
        one = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
        client.settimeout(0.5)
        with contextlib.suppress(OSError):
            # What the server does not take while its answers wait stays here: that is the bound.
            client.sendall(one * 10_000)
        answers = client.recv(65_536)
        assert answers.startswith(b"HTTP/1.1 200")


def deep_json(server: Server) -> None:
    """Nesting a hundred thousand deep, and a million keys."""
    nest = b"[" * 100_000 + b"]" * 100_000
    # A field that nobody knows is passed over without recursion, however deep.
    unknown = post(b'{"model":"mock","prompt":"x","max_tokens":1,"surprise":' + nest + b"}")
    assert send(server, unknown).startswith(b"HTTP/1.1 200")
    deep = b'{"model":"mock","prompt":' + nest + b"}"
    keys = b"{" + b",".join(b'"k%d":1' % index for index in range(1_000_000)) + b"}"
    for body in (deep, keys, b"[" * 100_000):
        assert send(server, post(body)).startswith(b"HTTP/1.1 400"), body[:50]


def bad_values(server: Server) -> None:
    """Numbers and texts that no float and no UTF-8 holds."""
    for value in (
        b'"prompt":"x","temperature":1e400',
        b'"prompt":"\\ud800"',
        b'"prompt":"\\udc00\\ud800"',
        b'"prompt":"\xed\xa0\x80"',
        b'"prompt":"\xff"',
        b'"prompt":[1e400]',
        b'"prompt":"x","max_tokens":99999999999999999999999',
        b'"prompt":"x","temperature":NaN',
    ):
        answer = send(server, post(b'{"model":"mock",' + value + b"}"))
        assert answer.startswith(b"HTTP/1.1 400"), (value, answer[:300])


def large_bodies(server: Server) -> None:
    """Bodies far above the limit, announced and not."""
    announced = f"{HEAD}content-length: {1 << 40}\r\n\r\n".encode() + b"x" * (1 << 20)
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    for raw in (announced, f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode() + chunk * 20):
        answer = send(server, raw)
        assert answer.startswith(b"HTTP/1.1 413") or answer == b"", answer[:100]


def smuggling(server: Server) -> None:
    """A second request in the body of the first: it must not be answered."""
    for framing in (
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: xchunked",
        "content-length: 4\r\ncontent-length: 0",
        "x: y\ntransfer-encoding: chunked",
    ):
        raw = f"{HEAD}{framing}\r\n\r\n0\r\n\r\nGET /version HTTP/1.1\r\nhost: x\r\n\r\n"
        answer = send(server, raw.encode())
        assert answer.count(b"HTTP/1.1 ") == 1, answer
        assert answer.startswith(b"HTTP/1.1 400"), answer


def dropped_connections(server: Server) -> None:
    """10,000 connections that are opened and dropped, some with a reset."""
    for index in range(10_000):
        with contextlib.closing(dial(server)) as client:
            if index % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def floods(server: Server) -> None:
    """Pings of HTTP/2 without end."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    ping = b"\0\0\x08\6\0\0\0\0\0" + b"\7" * 8
    with contextlib.closing(dial(server)) as client:
        client.sendall(preface)
        with pytest.raises(OSError, match=r"."):
            for _ in range(10_000):
                client.sendall(ping * 100)


def garbage(server: Server) -> None:
    """What is no HTTP at all, on every port."""
    for address in (server.http, server.grpc, server.workers, server.admin):
        host, port = address.rsplit(":", 1)
        for raw in (
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" * 50,
            b"\0" * 1_000,
            b"SSH-2.0\r\n",
        ):
            with contextlib.closing(
                socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
            ) as client:
                with contextlib.suppress(OSError):
                    client.sendall(raw)
                    client.shutdown(socket.SHUT_WR)
                    assert b"HTTP/1.1 200" not in client.recv(4_096)


ABUSES: list[Callable[[Server], None]] = [
    slow_heads,
    slow_bodies,
    huge_heads,
    half_requests,
    left_streams,
    pipelining,
    deep_json,
    bad_values,
    large_bodies,
    smuggling,
    dropped_connections,
    floods,
    garbage,
]


@pytest.mark.slow
def test_after_each_abuse_it_answers_as_before_and_holds_no_memory(server: Server) -> None:
    expected = server.complete(PROMPT, max_tokens=8)["choices"]
    before = rss(server)
    grown: dict[str, int] = {}
    for abuse in ABUSES:
        abuse(server)
        assert server.complete(PROMPT, max_tokens=8)["choices"] == expected, abuse.__doc__
        server.wait_idle()
        grown[abuse.__name__] = (rss(server) - before) >> 20
    assert rss(server) - before <= GROWTH_MAX, grown
