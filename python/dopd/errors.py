"""The Python half of the error table (see proto/dopd/v1/types.proto) and dopd's own exceptions.

`router/src/error/table.rs` is the other half; `tests/contract` compares them with the proto.
"""

from __future__ import annotations

from dataclasses import dataclass


class DopdError(Exception):
    """Root of dopd's exceptions: a failure with a message that says what, where and what to do."""


class ConfigError(DopdError):
    """A setting or a model cannot be used; the process ends with exit code 2."""


class ModelError(ConfigError):
    """A model folder or file is broken, incomplete or of an unknown architecture."""


class LinkError(DopdError):
    """A data link broke its contract or is gone; the link is closed, nothing else is."""


class LinkRefusedError(LinkError):
    """The other end will never take this link: asking again is of no use."""


class AccountingError(DopdError):
    """A worker has lost count of its pages: nothing that it computes can be trusted; it ends."""


class ProtocolError(DopdError):
    """The router asked for something that it must not ask: the session is broken off."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One way in which a request can fail.

    code: stable name, `error.code` in HTTP and `ErrorInfo.reason` in gRPC.
    kind: OpenAI's `error.type`.
    grpc: name of the gRPC status.
    http: HTTP status.
    origin: `client`, `router` or `worker`.
    is_retryable: the same request may succeed later.
    """

    code: str
    kind: str
    grpc: str
    http: int
    origin: str
    is_retryable: bool


# In the order of the proto.
ERROR_KINDS = (
    ErrorKind("invalid_json", "invalid_request_error", "INVALID_ARGUMENT", 400, "client", False),
    ErrorKind("invalid_value", "invalid_request_error", "INVALID_ARGUMENT", 400, "client", False),
    ErrorKind(
        "unsupported_value", "invalid_request_error", "INVALID_ARGUMENT", 400, "client", False
    ),
    ErrorKind(
        "context_length_exceeded", "invalid_request_error", "INVALID_ARGUMENT", 400, "client", False
    ),
    ErrorKind("model_not_found", "invalid_request_error", "NOT_FOUND", 404, "client", False),
    ErrorKind("not_found", "invalid_request_error", "NOT_FOUND", 404, "client", False),
    ErrorKind("method_not_allowed", "invalid_request_error", "UNIMPLEMENTED", 405, "client", False),
    ErrorKind(
        "body_too_large", "invalid_request_error", "RESOURCE_EXHAUSTED", 413, "client", False
    ),
    ErrorKind("unauthenticated", "authentication_error", "UNAUTHENTICATED", 401, "client", False),
    ErrorKind("permission_denied", "permission_error", "PERMISSION_DENIED", 403, "client", False),
    ErrorKind("rate_limited", "rate_limit_error", "RESOURCE_EXHAUSTED", 429, "client", True),
    ErrorKind("queue_full", "overloaded_error", "UNAVAILABLE", 503, "router", True),
    ErrorKind("no_worker", "overloaded_error", "UNAVAILABLE", 503, "router", True),
    ErrorKind("draining", "overloaded_error", "UNAVAILABLE", 503, "router", True),
    ErrorKind("deadline_exceeded", "timeout_error", "DEADLINE_EXCEEDED", 504, "router", True),
    ErrorKind("cancelled", "invalid_request_error", "CANCELLED", 499, "client", False),
    ErrorKind("worker_failed", "server_error", "UNAVAILABLE", 503, "worker", True),
    ErrorKind("poison_suspect", "server_error", "ABORTED", 409, "worker", False),
    ErrorKind("internal", "server_error", "INTERNAL", 500, "router", True),
    ErrorKind(
        "client_too_slow", "invalid_request_error", "DEADLINE_EXCEEDED", 408, "client", False
    ),
    ErrorKind("slo_late", "overloaded_error", "UNAVAILABLE", 503, "router", True),
    ErrorKind("slo_unmeetable", "overloaded_error", "UNAVAILABLE", 503, "router", True),
)
BY_CODE = {kind.code: kind for kind in ERROR_KINDS}
