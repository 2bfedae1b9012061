"""From a failed gRPC call to the exception that callers see."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, cast

import grpc

from dopd.client import details
from dopd.client.errors import REASONS, STATUSES, InternalError, RequestError

# How gRPC tells that somebody else answered, such as dopd's own HTTP listener.
HTTP_ANSWER = "http2 header with status"
NOT_GRPC = "check that the address is the gRPC listener of a dopd server of this version"
# What to do, where the server's message does not say it. By reason, else by gRPC status.
ADVICE = {
    "unauthenticated": "pass api_key to the client or set DOPD_API_KEY",
    "UNAUTHENTICATED": "pass api_key to the client or set DOPD_API_KEY",
    "UNIMPLEMENTED": NOT_GRPC,
    # No row of our table: never said by dopd.
    "UNKNOWN": NOT_GRPC,
    "DEADLINE_EXCEEDED": "raise timeout_s or ask for fewer tokens",
    "deadline_exceeded": "raise timeout_s or ask for fewer tokens",
    "UNAVAILABLE": "check the address and that `dopd serve` runs there",
    "INTERNAL": "report it with the request id",
    "internal": "report it with the request id",
}


# Options are parameters here, and two messages deep on the wire.
FIELD_PREFIX = re.compile(r"^(options\.)?(sampling\.)?")


class Failure(Protocol):
    """What the exceptions of grpc and of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode | None:
        """The status."""
        ...

    def details(self) -> str | None:
        """The status' message."""
        ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """What came after the answer."""
        ...


def error_of(
    failure: grpc.RpcError, *, endpoint: str, timeout_s: float, request_id: str | None = None
) -> RequestError:
    """The exception for `failure` of a call to `endpoint`.

    timeout_s: what the call was given. request_id: what the stream told before it failed.
    """
    told = cast(Failure, failure)
    code = told.code()
    status = code.name if code else "UNKNOWN"
    found = details.Details()
    for name, value in told.trailing_metadata() or ():
        if name == details.HEADER and isinstance(value, bytes):
            found = details.parse(value)
    kind = REASONS.get(found.reason) or STATUSES.get(status, InternalError)
    message = told.details() or f"the call failed with {status}"
    if not found.reason:
        message = f"{endpoint}: {message}"
    if status == "DEADLINE_EXCEEDED":
        message = f"{message}; timeout_s is {timeout_s:g}"
    is_foreign = not found.reason and HTTP_ANSWER in message
    advice = NOT_GRPC if is_foreign else ADVICE.get(found.reason or status)
    return kind(
        f"{message}; {advice}" if advice else message,
        reason=found.reason,
        status=status,
        request_id=found.request_id or request_id,
        field=_parameter(found.field),
        retry_after_s=found.retry_after_s,
    )


def _parameter(field: str | None) -> str | None:
    """The client's parameter for a field of the proto."""
    return field and FIELD_PREFIX.sub("", field)
