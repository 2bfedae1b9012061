"""Frames of a TCP data link: u32 message length, u32 payload length, message, payload.

Lengths are checked before anything is allocated or read. Page bytes go from and to the pool without
a copy of ours: `sendmsg` gathers them, `recvmsg_into` scatters them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

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


def send_frame(sock: socket.socket, message: LinkMessage, payload: Sequence[memoryview]) -> int:
    """Send one frame whole. Returns its bytes. Raises OSError."""
    head = wire.encode_link(message)
    num_payload = sum(len(view) for view in payload)
    header = HEADER.pack(len(head), num_payload) + head
    send_views(sock, [memoryview(header), *payload])
    return len(header) + num_payload


def send_views(sock: socket.socket, views: list[memoryview]) -> None:
    """Send all bytes of all views, in order."""
    index = 0
    while index < len(views):
        sent = sock.sendmsg(views[index : index + BUFFERS_MAX])
        index = _advance(views, index, sent)


def receive_views(sock: socket.socket, views: list[memoryview]) -> None:
    """Fill all views, in order. Raises LinkError if the peer ends first."""
    index = 0
    while index < len(views):
        received, _, _, _ = sock.recvmsg_into(views[index : index + BUFFERS_MAX])
        if received == 0:
            raise LinkError("connection ended inside of a frame")
        index = _advance(views, index, received)


def receive_header(sock: socket.socket, message_bytes_max: int) -> tuple[int, int] | None:
    """Lengths of message and payload of the next frame; None if the peer ended between frames."""
    header = bytearray(HEADER.size)
    first = sock.recv_into(header)
    if first == 0:
        return None
    if first < len(header):
        receive_views(sock, [memoryview(header)[first:]])
    num_message, num_payload = HEADER.unpack(header)
    if num_message > message_bytes_max or num_payload > PAYLOAD_BYTES_MAX:
        raise LinkError(
            f"frame of {num_message} + {num_payload} bytes, "
            f"at most {message_bytes_max} + {PAYLOAD_BYTES_MAX} are taken"
        )
    return num_message, num_payload


def receive_message(sock: socket.socket, num_bytes: int) -> LinkMessage:
    """The message of a frame whose header was read."""
    data = bytearray(num_bytes)
    if num_bytes:
        receive_views(sock, [memoryview(data)])
    return wire.decode_link(data)


def receive_handshake(sock: socket.socket) -> LinkMessage:
    """A first frame: small, and without payload."""
    lengths = receive_header(sock, HELLO_BYTES_MAX)
    if lengths is None:
        raise LinkError("connection ended before the handshake")
    if lengths[1]:
        raise LinkError(f"handshake with a payload of {lengths[1]} bytes")
    return receive_message(sock, lengths[0])


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
