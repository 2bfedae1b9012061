"""dopd: a server for large language models with prefill and decode on separate workers.

The names below are the client, loaded at their first use: `import dopd` alone loads no gRPC.
"""

__version__ = "0.1.0"

# As `typing.TYPE_CHECKING`, without the time to load it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from dopd.client import (
        Answer,
        AnswerOptions,
        AnswerStream,
        AsyncAnswerStream,
        AsyncClient,
        BrokenStreamError,
        Chat,
        ChatMessage,
        Choice,
        Client,
        ContextLengthError,
        DeadlineExceededError,
        Delta,
        Done,
        Event,
        Finished,
        FinishReason,
        HealthStatus,
        InternalError,
        InvalidRequestError,
        Model,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        Prompt,
        RateLimitedError,
        RequestCancelledError,
        RequestError,
        Started,
        TokenLogprob,
        TokenLogprobs,
        Tokens,
        UnauthenticatedError,
        UnavailableError,
        Usage,
        WorkerFailedError,
    )
    from dopd.errors import DopdError

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
    "DopdError",
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
    "__version__",
]


if not TYPE_CHECKING:
    # Type checkers take the imports above: with this in sight they would accept any name.

    def __getattr__(name: str) -> object:
        """A name of the client, loaded now."""
        if name not in __all__:
            raise AttributeError(f"module 'dopd' has no attribute {name!r}")
        from importlib import import_module

        module = import_module("dopd.errors" if name == "DopdError" else "dopd.client")
        found: object = getattr(module, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return __all__
