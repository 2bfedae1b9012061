"""The client of dopd: `Client`, `AsyncClient`, what they return and what they raise.

Everything here is also a name of `dopd` itself. Guide: docs/guides/sdk.md.
"""

from dopd.client.aio import AsyncAnswerStream
from dopd.client.async_client import AsyncClient
from dopd.client.blocking import AnswerStream
from dopd.client.client import Client
from dopd.client.errors import (
    BrokenStreamError,
    ContextLengthError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitedError,
    RequestCancelledError,
    RequestError,
    UnauthenticatedError,
    UnavailableError,
    WorkerFailedError,
)
from dopd.client.options import AnswerOptions, Chat, ChatMessage, Prompt
from dopd.client.results import (
    Answer,
    Choice,
    Delta,
    Done,
    Event,
    Finished,
    FinishReason,
    HealthStatus,
    Model,
    Started,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
    Usage,
)

__all__ = [
    "Answer",
    "AnswerOptions",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "BrokenStreamError",
    "Chat",
    "ChatMessage",
    "Choice",
    "Client",
    "ContextLengthError",
    "DeadlineExceededError",
    "Delta",
    "Done",
    "Event",
    "FinishReason",
    "Finished",
    "HealthStatus",
    "InternalError",
    "InvalidRequestError",
    "Model",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Prompt",
    "RateLimitedError",
    "RequestCancelledError",
    "RequestError",
    "Started",
    "TokenLogprob",
    "TokenLogprobs",
    "Tokens",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "WorkerFailedError",
]
