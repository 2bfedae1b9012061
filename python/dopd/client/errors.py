"""Exceptions of the client: one class per thing that a caller may want to do about a failure.

The server names the reason (`ErrorReason` in proto/dopd/v1/types.proto); `REASONS` maps each to its
class. Failures that never reached a server are told by their gRPC status.
"""

from __future__ import annotations

from dopd.errors import BY_CODE, DopdError


class RequestError(DopdError):
    """A request failed.

    reason: stable code, a row of dopd's error table such as `queue_full`; "" if no dopd server
        said one.
    status: name of the gRPC status, such as `UNAVAILABLE`; "" if the client found the fault.
    request_id: the server's id of the request, if it got one.
    field: the parameter at fault, if one is.
    retry_after_s: when the server wants to be asked again, if it said so.
    attempts: how often the request was sent.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        status: str = "",
        request_id: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.status = status
        self.request_id = request_id
        self.field = field
        self.retry_after_s = retry_after_s
        self.attempts = 1

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        kind = BY_CODE.get(self.reason)
        return kind.is_retryable if kind else self.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")

    def __str__(self) -> str:
        notes = [self.reason or self.status]
        if self.request_id:
            notes.append(f"request {self.request_id}")
        if self.attempts > 1:
            notes.append(f"{self.attempts} attempts")
        told = ", ".join(note for note in notes if note)
        return f"{self.message} ({told})" if told else self.message


class InvalidRequestError(RequestError):
    """The request can never succeed as it is; `field` names the parameter where one is at fault."""


class ContextLengthError(InvalidRequestError):
    """Prompt plus answer do not fit the model's context: shorten the prompt or `max_tokens`."""


class NotFoundError(RequestError):
    """No such model, or no dopd server at this address."""


class UnauthenticatedError(RequestError):
    """No valid API key: pass `api_key` or set DOPD_API_KEY."""


class PermissionDeniedError(RequestError):
    """The API key is valid, but not for this."""


class RateLimitedError(RequestError):
    """A quota of this key is used up; `retry_after_s` says when there is room again."""


class UnavailableError(RequestError):
    """No server, or none that can serve now: no connection, no worker, or it is shutting down."""


class OverloadedError(UnavailableError):
    """The server's queue is full; `retry_after_s` says when to come back."""


class DeadlineExceededError(RequestError, TimeoutError):
    """The answer was not complete within `timeout_s`, or within the server's own limit."""


class WorkerFailedError(RequestError):
    """A worker failed under the request, and it could not be continued elsewhere."""


class RequestCancelledError(RequestError):
    """The request was cancelled: its stream or its client was closed, or the server ended it."""


class InternalError(RequestError):
    """A defect of the server; please report it with the request id."""


class BrokenStreamError(InternalError):
    """Events of a stream are missing or out of order: what arrived is not the whole answer."""


REASONS: dict[str, type[RequestError]] = {
    "invalid_json": InvalidRequestError,
    "invalid_value": InvalidRequestError,
    "unsupported_value": InvalidRequestError,
    "context_length_exceeded": ContextLengthError,
    "model_not_found": NotFoundError,
    "not_found": NotFoundError,
    "method_not_allowed": NotFoundError,
    "body_too_large": InvalidRequestError,
    "unauthenticated": UnauthenticatedError,
    "permission_denied": PermissionDeniedError,
    "rate_limited": RateLimitedError,
    "queue_full": OverloadedError,
    "no_worker": UnavailableError,
    "draining": UnavailableError,
    "deadline_exceeded": DeadlineExceededError,
    "cancelled": RequestCancelledError,
    "worker_failed": WorkerFailedError,
    "poison_suspect": WorkerFailedError,
    "internal": InternalError,
    "client_too_slow": DeadlineExceededError,
    "slo_late": OverloadedError,
    "slo_unmeetable": OverloadedError,
}
STATUSES: dict[str, type[RequestError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "NOT_FOUND": NotFoundError,
    "UNIMPLEMENTED": NotFoundError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "RESOURCE_EXHAUSTED": RateLimitedError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "CANCELLED": RequestCancelledError,
    "ABORTED": WorkerFailedError,
}
