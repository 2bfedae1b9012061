"""A gRPC server that answers as its test scripts it: one script per call, in order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd._gen.dopd.v1 import types_pb2

DETAILS = "grpc-status-details-bin"
THREADS = 8
WAIT_S = 30.0

Script = Callable[["Call"], Iterator[Message]]


@dataclass
class Call:
    """One call as the server saw it."""

    method: str
    request: Any
    context: Any
    metadata: dict[str, str]
    remaining_s: float
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class FakeServer:
    """Scripts to come, calls that came."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.calls: list[Call] = []
        self.endpoint = ""

    def run(self, method: str, request: Any, context: Any) -> Iterator[Message]:
        """The next script; the last one stays for all further calls."""
        metadata = {name: str(value) for name, value in context.invocation_metadata()}
        call = Call(method, request, context, metadata, context.time_remaining())
        context.add_callback(call.is_cancelled.set)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.calls.append(call)
        return script(call)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        request_type = getattr(pb, f"{name}Request", None)
        decode = request_type.FromString if request_type else bytes

        def encode(message: Any) -> bytes:
            return message if isinstance(message, bytes) else message.SerializeToString()

        def one(request: Any, context: Any) -> Any:
            return next(self._fake.run(name, request, context))

        def many(request: Any, context: Any) -> Any:
            return self._fake.run(name, request, context)

        if name in ("Generate", "Chat"):
            return grpc.unary_stream_rpc_method_handler(many, decode, encode)
        return grpc.unary_unary_rpc_method_handler(one, decode, encode)


@contextlib.contextmanager
def serve(
    *scripts: Script, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> Iterator[FakeServer]:
    """A fake server with `scripts`; port 0: any free one."""
    fake = FakeServer()
    fake.scripts = list(scripts)
    with futures.ThreadPoolExecutor(THREADS) as threads:
        server = grpc.server(threads, handlers=[_Handler(fake)])
        if credentials is None:
            port = server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            port = server.add_secure_port("localhost:0", credentials)
        fake.endpoint = f"{'127.0.0.1' if credentials is None else 'localhost'}:{port}"
        server.start()
        try:
            yield fake
        finally:
            server.stop(grace=None).wait(WAIT_S)


def messages(*events: tuple[str, dict[str, Any]], kind: Any = pb.GenerateResponse) -> list[Any]:
    """Messages with numbers from 0."""
    types = {"started": pb.Started, "delta": pb.Delta, "finished": pb.Finished, "done": pb.Done}
    return [
        kind(sequence_number=number, **{name: types[name](**values)})
        for number, (name, values) in enumerate(events)
    ]


def whole(texts: Sequence[str] = ("Hel", "lo"), request_id: str = "r1", **more: Any) -> list[Any]:
    """A complete answer of one choice."""
    deltas = [("delta", {"text": text, "token_ids": [len(text)]}) for text in texts]
    return messages(
        ("started", {"request_id": request_id, "model": "m", "prompt_tokens": 3}),
        *deltas,
        ("finished", {"reason": types_pb2.FINISH_REASON_STOP}),
        ("done", {"usage": {"prompt_tokens": 3, "completion_tokens": len(texts)}}),
        **more,
    )


def says(*answers: Any) -> Script:
    """Send `answers`, end well."""
    return lambda _: iter(answers)


def fails(
    code: grpc.StatusCode,
    message: str = "told so",
    *,
    after: Sequence[Any] = (),
    details: Sequence[Message] = (),
    raw: bytes | None = None,
) -> Script:
    """Send `after`, then end with a status; `raw` in place of details that can be read."""

    def script(call: Call) -> Iterator[Message]:
        yield from after
        data = status_details(code, message, *details) if details else raw
        if data is not None:
            call.context.set_trailing_metadata(((DETAILS, data),))
        call.context.abort(code, message)

    return script


def waits(*answers: Any) -> Script:
    """Send `answers`, then nothing more until the client is gone."""

    def script(call: Call) -> Iterator[Message]:
        yield from answers
        assert call.is_cancelled.wait(WAIT_S)

    return script


def status_details(code: grpc.StatusCode, message: str, *details: Message) -> bytes:
    """The bytes of the trailer, written by Google's own classes."""
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return status.SerializeToString()


def info(reason: str, domain: str = "dopd") -> Message:
    """`ErrorInfo`."""
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain)


def retry_in(seconds: float) -> Message:
    """`RetryInfo`."""
    found = error_details_pb2.RetryInfo()
    found.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return found
