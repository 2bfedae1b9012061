//! What both fronts share: from a checked request to an answer that a client can read.
//!
//! [`Service::submit`] tokenizes, checks the length, hands the request to dispatch with one sink
//! per choice, and returns an [`Answer`]. The sinks ([`sink`]) turn tokens into text, match stop
//! strings, count, and leave what is new in an outbox; the front polls the answer and renders what
//! waits there. Nothing is rendered per token while the client reads slower than workers write.
//!
//! Not here: HTTP, gRPC, and how a request finds its worker.

mod answer;
#[cfg(test)]
mod assembler_tests;
mod backend;
mod budget;
mod ids;
mod live;
mod outbox;
mod pending;
mod prepare;
mod prompt;
mod record;
#[cfg(test)]
mod record_tests;
mod sink;
mod start;
mod targets;
mod text;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

pub use self::{
    answer::Answer,
    backend::{Backend, Running},
    budget::Preparing,
    outbox::{Next, Render, Usage},
    pending::Delta,
    prepare::{Prepared, text_of, tokenize},
    prompt::PromptPart,
};
use self::{budget::Budget, live::Live};
use crate::{
    auth::{Caller, Lease},
    config::records::{LimitsConfig, SloConfig},
    error::{Error, Reason},
    metrics::Metrics,
    status::{FleetStatus, Readiness},
    tokens::ServedModel,
    trace::{self, TraceContext, TraceParent},
    validate::{Prompt, Spec},
};

/// A request up to this size is prepared on the front thread; above it would hold up every stream
/// there, so it goes to a pool of threads.
const INLINE_BYTES_MAX: usize = 16 << 10;

/// When the reader of an answer is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At each token: the answer is streamed.
    Each,
    /// At the end: the answer is one object.
    End,
}

/// What a front wants of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// When to be woken.
    pub wake: Wake,
    /// Token ids beside the text.
    pub token_ids: bool,
}

/// A request that has just come in: its name, and the start of its clock.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// 128 random bits in hex.
    pub id: String,
    /// When its head was read.
    pub at: Instant,
    /// Who sent it.
    pub caller: Caller,
    /// W3C trace context for the workers; empty: none.
    pub traceparent: String,
    /// Its place in a trace that this router records.
    pub trace: Option<TraceContext>,
    /// The client's own name for it, for the log.
    pub client_id: Option<Box<str>>,
    /// Hold on the caller's quotas; `None` only if they refused it.
    lease: Option<Arc<Lease>>,
}

/// What the head of a request tells of it.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Who sent it.
    pub caller: Caller,
    /// W3C trace context as it came, or empty: what is malformed is read past.
    pub traceparent: String,
    /// The client's own name for it, for the log.
    pub client_id: Option<Box<str>>,
}

/// A request that was refused as it came in.
#[derive(Debug)]
pub struct Refusal {
    /// The name under which it was logged, for its client to see; `None`: it has none.
    pub id: Option<String>,
    /// Why.
    pub error: Error,
}

impl Arrival {
    /// Tells the caller's quota what the request used.
    fn used(&self, prompt_tokens: u32, completion_tokens: u64) {
        if let Some(lease) = &self.lease {
            lease.used(u64::from(prompt_tokens) + completion_tokens);
        }
    }
}

/// A request in preparation: dropped with it inside, the client has left.
struct Watch<'a>(Option<(&'a Service, &'a Arrival)>);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some((service, arrival)) = self.0 {
            let message = "the client left before the request was prepared";
            service.refuse(arrival, &Error::new(Reason::Cancelled, message));
        }
    }
}

/// One served model behind both fronts. Shared by all front threads.
#[derive(Debug)]
pub struct Service {
    model: Arc<ServedModel>,
    limits: Arc<LimitsConfig>,
    slo: SloConfig,
    backend: Box<dyn Backend>,
    metrics: Metrics,
    /// One permit per core: long prompts queue here instead of filling the blocking pool.
    cores: Arc<Semaphore>,
    preparing: Arc<Budget>,
    live: Arc<Live>,
    started: Instant,
}

impl Service {
    /// A service for `model`; `backend` is dispatch, or a test's player of tokens.
    pub fn new(
        model: Arc<ServedModel>,
        limits: LimitsConfig,
        slo: SloConfig,
        backend: impl Backend + 'static,
        metrics: Metrics,
    ) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            model,
            preparing: Budget::new(limits.preparing_bytes_max),
            limits: Arc::new(limits),
            slo,
            backend: Box::new(backend),
            metrics,
            cores: Arc::new(Semaphore::new(cores)),
            live: Arc::default(),
            started: Instant::now(),
        })
    }

    /// The model.
    pub fn model(&self) -> &ServedModel {
        &self.model
    }

    /// The model, to be kept beside an answer.
    pub fn shared_model(&self) -> Arc<ServedModel> {
        Arc::clone(&self.model)
    }

    /// Bounds on requests.
    pub fn limits(&self) -> &LimitsConfig {
        &self.limits
    }

    /// The bounds, to be taken to another thread.
    pub fn shared_limits(&self) -> Arc<LimitsConfig> {
        Arc::clone(&self.limits)
    }

    /// Metrics of the router.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether a request would find a worker.
    pub fn is_ready(&self) -> bool {
        self.backend.is_ready()
    }

    /// Whether what schedules requests runs.
    pub fn is_alive(&self) -> bool {
        self.backend.is_alive()
    }

    /// Whether a request that comes now would be answered.
    pub fn readiness(&self) -> Readiness {
        self.backend.readiness()
    }

    /// A snapshot of the fleet.
    pub async fn status(&self) -> FleetStatus {
        self.backend.status().await
    }

    /// Names a request; call it when its head has been read. Refused, counted and logged where the
    /// caller's quota is used up.
    pub fn arrive(&self, head: Head) -> Result<Arrival, Refusal> {
        let at = Instant::now();
        let id = ids::request_id().map_err(|error| Refusal { id: None, error })?;
        let lease = head.caller.begin(at);
        let parent = TraceParent::parse(&head.traceparent);
        let trace = if trace::is_on() {
            TraceContext::begin(parent)
        } else {
            None
        };
        let mut arrival = Arrival {
            id,
            at,
            caller: head.caller,
            traceparent: match (trace, parent) {
                (Some(trace), _) => trace.own.header(),
                (None, Some(_)) => head.traceparent,
                (None, None) => String::new(),
            },
            trace,
            client_id: head.client_id,
            lease: None,
        };
        match lease {
            Ok(lease) => {
                arrival.lease = Some(Arc::new(lease));
                Ok(arrival)
            }
            Err(error) => {
                self.metrics.quota_refused(&arrival.caller.key);
                self.refuse(&arrival, &error);
                Err(Refusal {
                    id: Some(arrival.id),
                    error,
                })
            }
        }
    }

    /// A name for an answer that no request is behind.
    pub fn name(&self) -> Result<String, Error> {
        ids::request_id()
    }

    /// Counts and logs a request that was refused before [`Self::submit`].
    pub fn refuse(&self, arrival: &Arrival, error: &Error) {
        record::refused(arrival, &self.metrics, error);
    }

    /// The share of a request whose body is about to be read.
    pub fn preparing(&self) -> Preparing {
        self.preparing.begin()
    }

    /// When a request that arrived at `at` is overdue; `timeout` is what its client gave it.
    pub fn deadline(&self, at: Instant, timeout: Option<Duration>) -> Instant {
        let longest = Duration::from_millis(self.limits.request_timeout_ms);
        at + timeout.map_or(longest, |timeout| timeout.min(longest))
    }

    /// Does `work` on `bytes` of a request: here if they are few, else on another thread.
    pub async fn prepare<T: Send + 'static>(
        &self,
        bytes: usize,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _preparing = self.metrics.request_preparing();
        if bytes <= INLINE_BYTES_MAX {
            return work();
        }
        let done = tokio::time::timeout_at(deadline.into(), self.apart(bytes, work)).await;
        done.unwrap_or_else(|_| {
            let message = "the deadline passed before the request was prepared";
            Err(Error::new(Reason::DeadlineExceeded, message))
        })?
    }

    /// Does `work`, which reads or writes `bytes`: here if they are few, else on another thread.
    pub async fn apart<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        if bytes <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        let stopped = |_| Error::new(Reason::Draining, "the server is shutting down");
        let permit = Arc::clone(&self.cores)
            .acquire_owned()
            .await
            .map_err(stopped)?;
        let done = tokio::task::spawn_blocking(move || {
            // Held until the work is done: a client that leaves does not end it.
            let _permit = permit;
            work()
        });
        let ended = |_| Error::new(Reason::Internal, "the work on another thread ended early");
        done.await.map_err(ended)
    }

    /// Starts a request. An error has been counted and logged.
    pub async fn submit(
        &self,
        arrival: Arrival,
        spec: Spec,
        wanted: Wanted,
    ) -> Result<Answer, Error> {
        let deadline = self.deadline(arrival.at, spec.timeout);
        let (model, limits) = (self.shared_model(), self.shared_limits());
        let bytes = prepare::text_bytes(&spec);
        let work = move || Prepared::new(spec, &model, &limits);
        let prepared = self.prepare(bytes, deadline, work);
        let prepared = self.prepared(&arrival, prepared).await?;
        self.start(&arrival, &prepared, wanted)
    }

    /// Waits for what prepares the request `arrival`. An error has been counted and logged; a
    /// client that leaves, which drops this, is as well.
    pub async fn prepared<T>(
        &self,
        arrival: &Arrival,
        preparing: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut watch = Watch(Some((self, arrival)));
        let prepared = preparing.await;
        watch.0 = None;
        prepared.inspect_err(|error| self.refuse(arrival, error))
    }

    /// Token ids of a prompt.
    pub async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let bytes = prompt.text_bytes();
        let (prompt, model) = (prompt.clone(), self.shared_model());
        let deadline = self.deadline(Instant::now(), None);
        let work = move || prepare::tokenize(&prompt, None, &model);
        self.prepare(bytes, deadline, work).await
    }

    /// Starts a request that is prepared. An error has been counted and logged.
    pub fn start(
        &self,
        arrival: &Arrival,
        prepared: &Prepared,
        wanted: Wanted,
    ) -> Result<Answer, Error> {
        let started = self.run(arrival, prepared, wanted);
        started.inspect_err(|error| self.refuse(arrival, error))
    }

    /// Looks after answers that nobody polls: cuts slow readers and overdue requests, asks for
    /// pings. Call it about once a second from each front thread; most calls return at once.
    pub fn sweep(&self, now: Instant) {
        let patience = Duration::from_millis(self.limits.slow_reader_timeout_ms);
        self.live.sweep(now, patience);
    }
}
