"""Frames of a data link on their way through a proxy, and a peer that sends what it likes.

`Frames` is a filter for `proxy.Way`: it hands each message to a test, which says what goes on.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from types import TracebackType

from dopd import wire
from dopd.engine.mock import GEOMETRY
from dopd.transfer import frames
from dopd.transfer.base import PROTOCOL
from dopd.types import LinkHello, LinkMessage, LinkWelcome
from tests.support.faults.proxy import Pipe, Plan, Way

WAIT_S = 10.0

Frame = tuple[LinkMessage, bytes]
"""A message with its payload."""

Change = Callable[[Pipe, LinkMessage, bytes], Iterable[Frame]]
"""What goes on in place of one frame: nothing, it, or others."""


def encode(message: LinkMessage, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    head = wire.encode_link(message)
    return frames.HEADER.pack(len(head), len(payload)) + head + payload


class Frames:
    """Cuts one direction of one connection into frames."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._rest = b""

    def __call__(self, pipe: Pipe, data: bytes) -> bytes:
        """See `proxy.Filter`."""
        self._rest += data
        size = frames.HEADER.size
        out = []
        while len(self._rest) >= size:
            num_message, num_payload = frames.HEADER.unpack(self._rest[:size])
            end = size + num_message + num_payload
            if len(self._rest) < end:
                break
            message = wire.decode_link(self._rest[size : size + num_message])
            payload = self._rest[size + num_message : end]
            self._rest = self._rest[end:]
            out += [encode(*frame) for frame in self._change(pipe, message, payload)]
        return b"".join(out)


def changing(change: Change, *, back: bool = False) -> Callable[[int], Plan]:
    """A plan that hands every frame of every connection to `change`: of sources, or of `back`."""

    def plan(_: int) -> Plan:
        way = Way(filter=Frames(change))
        return Plan(back=way) if back else Plan(out=way)

    return plan


class Stranger:
    """A peer that has the join token and keeps to no protocol: the dialling side of a link."""

    def __init__(
        self, address: str, token: str, *, layout: int = wire.layout_hash(GEOMETRY)
    ) -> None:
        host, _, port = address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=WAIT_S)
        hello = LinkHello(PROTOCOL, "stranger", 77, layout, token)
        self.send(encode(hello))
        welcome = self.answer(WAIT_S)
        assert isinstance(welcome, LinkWelcome), welcome
        self.error = welcome.error

    def __enter__(self) -> Stranger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        """Bytes as they are; the link may be shut already."""
        try:
            self._sock.sendall(data)
        except OSError as error:
            self.error = str(error)

    def answer(self, within_s: float) -> LinkMessage | None:
        """The next message; None: nothing came in this time, or the link was shut."""
        self._sock.settimeout(within_s)
        try:
            num_message, num_payload = frames.HEADER.unpack(self._receive(frames.HEADER.size))
            message = wire.decode_link(self._receive(num_message))
            self._receive(num_payload)
        except (TimeoutError, ConnectionError, EOFError):
            return None
        return message

    def _receive(self, num_bytes: int) -> bytes:
        data = b""
        while len(data) < num_bytes:
            more = self._sock.recv(num_bytes - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def is_shut(self) -> bool:
        """Wait until the worker shuts the link."""
        self._sock.settimeout(WAIT_S)
        try:
            while self._sock.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True
