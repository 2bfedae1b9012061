"""Spans of a worker's seats to an OTLP collector (--otel): prefill and decode.

They are in their request's trace. Imported only when asked for. The desk tells under its lock; the
exporter has a thread and a bounded queue of its own, and drops what the collector does not take. A
request without a trace context, or one that its caller does not record, gets no span.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from dopd import __version__
from dopd.sched.sequence import Sequence
from dopd.worker.observer import Observer

# The router sends version 00 only.
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
SAMPLED = 1
EXPORT_TIMEOUT_S = 5
FLUSH_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Part:
    """A span under way. start_ns: since the epoch."""

    name: str
    start_ns: int
    answer: int


class Spans(Observer):
    """Makes a span of each stretch of prefill and of decode that a seat takes part in."""

    def __init__(self, endpoint: str, worker: str, role: str) -> None:
        resource = Resource.create(
            {"service.name": "dopd-worker", "service.version": __version__, "dopd.worker": worker}
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=EXPORT_TIMEOUT_S)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dopd", __version__)
        self._role = role
        self._parts: dict[int, Part] = {}

    def joined(self, sequence: Sequence) -> None:
        """A seat takes part in steps: a prompt to compute, or an answer that came over a link."""
        if sequence.traceparent:
            name = "decode" if sequence.is_decoding else "prefill"
            self._parts[sequence.slot] = Part(name, time.time_ns(), len(sequence.answer))

    def stepped(self, sequences: Iterable[Sequence]) -> None:
        """The first token ends a prefill."""
        for sequence in sequences:
            part = self._parts.get(sequence.slot)
            if part is not None and part.name == "prefill" and len(sequence.answer) > part.answer:
                now_ns = time.time_ns()
                self._emit(sequence, part, now_ns)
                self._parts[sequence.slot] = Part("decode", now_ns, len(sequence.answer))

    def left(self, sequence: Sequence) -> None:
        """A seat ended, or its KV travels."""
        part = self._parts.pop(sequence.slot, None)
        if part is not None:
            self._emit(sequence, part, time.time_ns())

    def close(self) -> None:
        """Send what waits, for a bounded time."""
        # By itself it gives every batch of its queue the time of an export.
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(FLUSH_TIMEOUT_S)

    def _emit(self, sequence: Sequence, part: Part, end_ns: int) -> None:
        match = TRACEPARENT.fullmatch(sequence.traceparent)
        if match is None or not int(match[3], 16) & SAMPLED:
            return
        parent = SpanContext(
            int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(SAMPLED)
        )
        span = self._tracer.start_span(
            part.name,
            context=set_span_in_context(NonRecordingSpan(parent)),
            kind=trace.SpanKind.INTERNAL,
            start_time=part.start_ns,
            attributes={
                "gen_ai.response.id": sequence.request_id,
                "gen_ai.usage.input_tokens": sequence.prompt_tokens,
                "dopd.tokens": len(sequence.answer) - part.answer,
                "dopd.role": self._role,
            },
        )
        span.end(end_ns)
