"""Frames of a data link: u32 message length, u32 payload length, message, payload.

Lengths are checked before anything is allocated or read. Page bytes go from and to the pool without
a copy of ours: `sendmsg` gathers them, `recvmsg_into` scatters them. Descriptors travel beside a
handshake (shm) and nowhere else.
"""

from __future__ import annotations

import array
import socket
import struct
import time
from collections.abc import Callable, Sequence

from dopd import wire
from dopd.errors import LinkError
from dopd.types import LinkMessage

HEADER = struct.Struct("<II")
# Limits of link.proto: a Go of 131,072 tokens is 25 kB, an End of them 400 kB.
MESSAGE_BYTES_MAX = 1 << 20
PAYLOAD_BYTES_MAX = 64 << 20
# Before the peer has proved that it is one of us.
HELLO_BYTES_MAX = 4096
# Buffers in one system call; Linux takes 1024.
BUFFERS_MAX = 512
# Room for one descriptor, not more: the kernel drops those that do not fit, and says so.
ONE_DESCRIPTOR = socket.CMSG_LEN(array.array("i").itemsize)

Read = Callable[[Sequence[memoryview]], int]
"""Fills the first bytes of some buffers; returns how many, 0 at the end."""


def send_frame(
    sock: socket.socket,
    message: LinkMessage,
    payload: Sequence[memoryview],
    descriptors: Sequence[int] = (),
) -> int:
    """Send one frame whole. Returns its bytes. Raises OSError."""
    head = wire.encode_link(message)
    num_payload = sum(len(view) for view in payload)
    views = [memoryview(HEADER.pack(len(head), num_payload) + head), *payload]
    num_bytes = len(views[0]) + num_payload
    index = 0
    if descriptors:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        index = _advance(views, 0, sock.sendmsg(views[:BUFFERS_MAX], [rights]))
    while index < len(views):
        index = _advance(views, index, sock.sendmsg(views[index : index + BUFFERS_MAX]))
    return num_bytes


def reader(sock: socket.socket) -> Read:
    """Reads from a link that is up."""

    def read(views: Sequence[memoryview]) -> int:
        received, _, flags, _ = sock.recvmsg_into(views)
        if flags & socket.MSG_CTRUNC:
            raise LinkError("descriptors on a link that is up")
        return received

    return read


def receive_views(read: Read, views: list[memoryview], what: str = "connection") -> None:
    """Fill all views, in order. Raises LinkError if there is less."""
    index = 0
    while index < len(views):
        received = read(views[index : index + BUFFERS_MAX])
        if received == 0:
            raise LinkError(f"{what} ended inside of a frame")
        index = _advance(views, index, received)


def receive_header(read: Read, message_bytes_max: int) -> tuple[int, int] | None:
    """Lengths of message and payload of the next frame; None if the peer ended between frames."""
    header = memoryview(bytearray(HEADER.size))
    first = read([header])
    if first == 0:
        return None
    if first < len(header):
        receive_views(read, [header[first:]])
    num_message, num_payload = HEADER.unpack(header)
    if num_message > message_bytes_max or num_payload > PAYLOAD_BYTES_MAX:
        raise LinkError(
            f"frame of {num_message} + {num_payload} bytes, "
            f"at most {message_bytes_max} + {PAYLOAD_BYTES_MAX} are taken"
        )
    return num_message, num_payload


def receive_message(read: Read, num_bytes: int) -> LinkMessage:
    """The message of a frame whose header was read."""
    data = bytearray(num_bytes)
    if num_bytes:
        receive_views(read, [memoryview(data)])
    return wire.decode_link(data)


def receive_handshake(
    sock: socket.socket, within_s: float, descriptors: list[int] | None = None
) -> LinkMessage:
    """A first frame: small, without payload, and whole within a time.

    descriptors: gets those that come along, whatever becomes of the frame: the caller closes them.
    """
    deadline = time.monotonic() + within_s

    def read(views: Sequence[memoryview]) -> int:
        # Of all of it: else a peer holds a handshake for ever with a byte now and then.
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise LinkError(f"no handshake within {within_s:g} s")
        sock.settimeout(left_s)
        if descriptors is None:
            return sock.recvmsg_into(views)[0]
        received, rights, flags, _ = sock.recvmsg_into(
            views, ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.extend(array.array("i", data))
        if flags & socket.MSG_CTRUNC or len(descriptors) > 1:
            raise LinkError("handshake with more than one descriptor")
        return received

    lengths = receive_header(read, HELLO_BYTES_MAX)
    if lengths is None:
        raise LinkError("connection ended before the handshake")
    if lengths[1]:
        raise LinkError(f"handshake with a payload of {lengths[1]} bytes")
    return receive_message(read, lengths[0])


def _advance(views: list[memoryview], index: int, num_bytes: int) -> int:
    """Skip num_bytes from views[index] on; cuts the view that is done in part."""
    while num_bytes:
        view = views[index]
        if num_bytes < len(view):
            views[index] = view[num_bytes:]
            return index
        num_bytes -= len(view)
        index += 1
    return index
