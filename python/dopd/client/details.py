"""Details of a failed call: `google.rpc.Status` in the trailer `grpc-status-details-bin`.

Read by hand from the wire format, so that the client needs neither grpcio-status nor
googleapis-common-protos. Used by `status`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEADER = "grpc-status-details-bin"
DOMAIN = "dopd"
TYPE_PREFIX = "type.googleapis.com/google.rpc."

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
VARINT_BYTES_MAX = 10
UINT64_MASK = (1 << 64) - 1
INT64_MAX = (1 << 63) - 1


@dataclass
class Details:
    """What the details say.

    reason: `ErrorInfo.reason` if its domain is ours, else "".
    field: the first field that `BadRequest` names.
    retry_after_s: `RetryInfo.retry_delay`, if it is not negative.
    """

    reason: str = ""
    field: str | None = None
    retry_after_s: float | None = None
    request_id: str | None = None


def parse(data: bytes) -> Details:
    """Details in the bytes of a `google.rpc.Status`; what cannot be read is left out."""
    found = Details()
    try:
        for number, value in fields(data):
            if number == 3 and isinstance(value, bytes):
                _read_any(value, found)
    except ValueError:
        # The status itself stands in other trailers: a proxy's broken details only cost comfort.
        return found
    return found


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; raises ValueError where it is malformed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in FIXED_SIZES:
            size = FIXED_SIZES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if size > len(data) - at:
            raise ValueError("a field is longer than its message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for count, byte in enumerate(data[at : at + VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & UINT64_MASK, at + count + 1
    raise ValueError("a number does not end")


def _read_any(data: bytes, found: Details) -> None:
    """One `google.protobuf.Any`; types that we do not know are left out."""
    values = dict(fields(data))
    body = _bytes(values, 2)
    kind = _text(values, 1).removeprefix(TYPE_PREFIX)
    if kind == "ErrorInfo":
        info = dict(fields(body))
        if _text(info, 2) == DOMAIN:
            found.reason = _text(info, 1)
    elif kind == "BadRequest":
        violation = next((value for number, value in fields(body) if number == 1), b"")
        if isinstance(violation, bytes):
            found.field = _text(dict(fields(violation)), 1) or None
    elif kind == "RetryInfo":
        delay = dict(fields(_bytes(dict(fields(body)), 1)))
        seconds, nanos = _int(delay, 1), _int(delay, 2)
        # Numbers are two's complement: a negative delay is a very large one here.
        if seconds <= INT64_MAX and nanos <= INT64_MAX:
            found.retry_after_s = seconds + nanos / 1e9
    elif kind == "RequestInfo":
        found.request_id = _text(dict(fields(body)), 1) or None


def _bytes(values: dict[int, int | bytes], number: int) -> bytes:
    value = values.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _text(values: dict[int, int | bytes], number: int) -> str:
    return _bytes(values, number).decode(errors="replace")


def _int(values: dict[int, int | bytes], number: int) -> int:
    value = values.get(number, 0)
    return value if isinstance(value, int) else 0
