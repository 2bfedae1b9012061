"""One trace from the caller through the router to the workers; nothing of it without --otel."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tests.support.server import serve

pytest.importorskip("opentelemetry.proto")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@dataclass(frozen=True)
class Span:
    """One exported span."""

    service: str
    name: str
    trace_id: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


class Collector(rpc.TraceServiceServicer):
    """Keeps every span."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = []
        for resource in request.resource_spans:
            of = {entry.key: _value(entry.value) for entry in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found.append(
                        Span(
                            of["service.name"],
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            {entry.key: _value(entry.value) for entry in span.attributes},
                        )
                    )
        with self._lock:
            self._spans += found
        return pb.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> list[Span]:
        with self._lock:
            return [span for span in self._spans if span.trace_id == trace_id]

    def trace_ids(self) -> set[str]:
        with self._lock:
            return {span.trace_id for span in self._spans}


@contextlib.contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(4))
    found = Collector()
    rpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield found, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_router_and_workers_tell_of_one_request_in_its_callers_trace() -> None:
    body = {"prompt": "MARKER-PROMPT", "max_tokens": 30, "model": "mock"}
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "model": "mock"}
    sampled = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
    with collector() as (found, endpoint):
        # Step times of a GPU: a hand-off arrives before the answer ends.
        with serve("--mock", "--mock-timings", "h100-8b", "--otel", endpoint) as server:
            answer = server.call("POST", "/v1/completions", body, headers=sampled)
            assert answer.status == 200
            unsampled = {"traceparent": f"00-{TRACE_ID[::-1]}-{CALLER}-00"}
            assert server.call("POST", "/v1/completions", body, headers=unsampled).status == 200
            broken = {"traceparent": "00-zz-1-01"}
            assert server.call("POST", "/v1/chat/completions", chat, headers=broken).status == 200
            bad = body | {"n": 1000}
            assert server.call("POST", "/v1/completions", bad).status == 400
            server.wait_idle()
        # The last spans went out when the processes ended.
        spans = found.spans(TRACE_ID)
        ids = found.trace_ids()
    by_name = {(span.service, span.name): span for span in spans}
    root = by_name[("dopd-router", "text_completion mock")]
    assert root.parent == CALLER
    assert root.attributes["gen_ai.operation.name"] == "text_completion"
    assert root.attributes["gen_ai.usage.input_tokens"] == len("MARKER-PROMPT")
    assert root.attributes["gen_ai.usage.output_tokens"] == 30
    assert root.attributes["gen_ai.response.id"] == answer.headers["x-request-id"]
    for part in ("queue", "prefill", "transfer", "decode"):
        span = by_name[("dopd-router", part)]
        assert span.parent == root.id, part
        assert root.start_ns <= span.start_ns <= span.end_ns <= root.end_ns, part
    for part in ("prefill", "decode"):
        span = by_name[("dopd-worker", part)]
        assert span.parent == root.id, part
        assert span.attributes["gen_ai.response.id"] == root.attributes["gen_ai.response.id"]
    assert len({span.id for span in spans}) == len(spans)
    assert not any("MARKER" in str(span) for span in spans)
    assert TRACE_ID[::-1] not in ids, "the caller does not record this one"
    assert len(ids) == 3, "chat and the refusal have traces of their own"


def test_a_collector_that_is_not_there_harms_nobody() -> None:
    with serve("--mock", "--otel", "http://127.0.0.1:1") as server:
        for _ in range(3):
            server.complete([1, 2, 3], max_tokens=3)


def test_without_otel_workers_import_nothing_of_it() -> None:
    with serve("--mock") as server:
        server.complete([1], max_tokens=2)
        for worker in server.status()["workers"]:
            with open(f"/proc/{worker['pid']}/maps", encoding="utf-8") as maps:
                assert "opentelemetry" not in maps.read()
