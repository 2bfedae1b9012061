//! Spans of finished requests, to an OTLP collector (`--otel`).
//!
//! A span is made when its request has ended, from times that its record keeps anyway: while it
//! runs tracing costs 24 random bytes. The exporter has a thread and a runtime of its own; what it
//! cannot send in time is dropped, never waited for.

use std::{borrow::Cow, time::Instant};

use super::TraceContext;
use crate::config::ConfigError;

/// One value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Words.
    Text(Cow<'static, str>),
    /// A count.
    Count(u64),
}

/// A request that has ended, with its parts as child spans.
#[derive(Debug)]
pub struct Finished {
    /// Its place in a trace.
    pub context: TraceContext,
    /// What was asked for: `chat` or `text_completion`.
    pub operation: &'static str,
    /// From arrival.
    pub start: Instant,
    /// To the end.
    pub end: Instant,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Code of the error that ended it.
    pub error: Option<&'static str>,
    /// Name and times of each part.
    pub parts: Vec<(&'static str, Instant, Instant)>,
}

#[cfg(feature = "otel")]
pub use on::{export, is_on, shutdown, start};

#[cfg(not(feature = "otel"))]
pub use off::{export, is_on, shutdown, start};

#[cfg(feature = "otel")]
mod on {
    use std::{
        borrow::Cow,
        sync::OnceLock,
        thread,
        time::{Duration, Instant, SystemTime},
    };

    use opentelemetry::{
        InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
        trace::{SpanContext, SpanKind, Status, TraceState},
    };
    use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
    use opentelemetry_sdk::{
        Resource,
        trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _},
    };
    use tokio_util::sync::CancellationToken;

    use super::{ConfigError, Finished, Value};

    /// Time for one export; a collector that takes longer loses the batch.
    const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
    /// Time for the last spans at shutdown.
    const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

    static SPANS: OnceLock<Spans> = OnceLock::new();

    struct Spans {
        processor: BatchSpanProcessor,
        model: String,
        stop: CancellationToken,
    }

    /// Begins to export spans of requests for `model` to `endpoint`; a second call changes nothing.
    pub fn start(endpoint: &str, model: &str) -> Result<(), ConfigError> {
        let failed = |problem: String| {
            ConfigError::Relation(format!(
                "otel.endpoint is {endpoint:?}: {problem}; it must be like http://127.0.0.1:4317"
            ))
        };
        if !endpoint.starts_with("http://") {
            return Err(failed("spans go out over plain gRPC only".to_owned()));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(format!("no runtime: {error}")))?;
        let exporter = {
            // The channel is spawned on the runtime that is current when it is built.
            let _inside = runtime.enter();
            SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(EXPORT_TIMEOUT)
                .build()
                .map_err(|error| failed(error.to_string()))?
        };
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let resource = Resource::builder()
            .with_service_name("dopd-router")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        processor.set_resource(&resource);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        thread::Builder::new()
            .name("otel".to_owned())
            .spawn(move || runtime.block_on(stopped.cancelled()))
            .map_err(|error| failed(format!("no thread: {error}")))?;
        let spans = Spans {
            processor,
            model: model.to_owned(),
            stop,
        };
        if SPANS.set(spans).is_err() {
            tracing::debug!("spans were set up before; their endpoint stays");
        }
        Ok(())
    }

    /// Whether spans are exported.
    pub fn is_on() -> bool {
        SPANS.get().is_some()
    }

    /// Sends what waits, for a bounded time.
    pub fn shutdown() {
        let Some(spans) = SPANS.get() else { return };
        if let Err(error) = spans.processor.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
        spans.stop.cancel();
    }

    /// Hands a request's spans to the exporter; never waits.
    pub fn export(finished: Finished) {
        let Some(spans) = SPANS.get() else { return };
        let clock = Clock::now();
        let (context, error) = (finished.context, finished.error);
        let own = SpanId::from_bytes(context.own.span_id);
        let trace_id = TraceId::from_bytes(context.own.trace_id);
        let span = |id, parent, remote, kind, name, start, end| SpanData {
            span_context: SpanContext::new(
                trace_id,
                id,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: parent,
            parent_span_is_remote: remote,
            span_kind: kind,
            name,
            start_time: clock.at(start),
            end_time: clock.at(end),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("dopd").build(),
        };
        for (number, (name, start, end)) in (1_u8..).zip(finished.parts) {
            // Children of one span need ids that differ; these do, from its and each other's.
            let mut id = context.own.span_id;
            id[7] = id[7].wrapping_add(number);
            let id = SpanId::from_bytes(id);
            let name = Cow::Borrowed(name);
            let part = span(id, own, false, SpanKind::Internal, name, start, end);
            spans.processor.on_end(part);
        }
        let parent = context.parent.map_or(SpanId::INVALID, SpanId::from_bytes);
        let remote = context.parent.is_some();
        let name = Cow::Owned(format!("{} {}", finished.operation, spans.model));
        let (start, end) = (finished.start, finished.end);
        let mut request = span(own, parent, remote, SpanKind::Server, name, start, end);
        request.attributes = attributes(finished.operation, &spans.model, finished.attributes);
        if let Some(code) = error {
            request.attributes.push(KeyValue::new("error.type", code));
            request.status = Status::error(code);
        }
        spans.processor.on_end(request);
    }

    fn attributes(
        operation: &'static str,
        model: &str,
        values: Vec<(&'static str, Value)>,
    ) -> Vec<KeyValue> {
        let own = values.into_iter().map(|(key, value)| match value {
            Value::Text(text) => KeyValue::new(key, text),
            Value::Count(count) => KeyValue::new(key, i64::try_from(count).unwrap_or(i64::MAX)),
        });
        [
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", "dopd"),
            KeyValue::new("gen_ai.request.model", model.to_owned()),
        ]
        .into_iter()
        .chain(own)
        .collect()
    }

    /// Relates instants to the time of day.
    struct Clock(Instant, SystemTime);

    impl Clock {
        fn now() -> Self {
            Self(Instant::now(), SystemTime::now())
        }

        fn at(&self, instant: Instant) -> SystemTime {
            let ago = self.0.saturating_duration_since(instant);
            self.1.checked_sub(ago).unwrap_or(self.1)
        }
    }
}

#[cfg(not(feature = "otel"))]
mod off {
    use super::{ConfigError, Finished};

    /// Refuses: this build cannot.
    pub fn start(endpoint: &str, _model: &str) -> Result<(), ConfigError> {
        Err(ConfigError::Relation(format!(
            "otel.endpoint is {endpoint:?}, but this build has no OpenTelemetry: build with the \
             cargo feature otel"
        )))
    }

    /// Whether spans are exported.
    pub const fn is_on() -> bool {
        false
    }

    /// Nothing waits.
    pub const fn shutdown() {}

    /// Nothing is exported.
    pub fn export(_finished: Finished) {}
}
