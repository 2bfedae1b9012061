//! What both fronts share: from a checked request to an answer that a client can read.
//!
//! [`Service::submit`] tokenizes, checks the length, hands the request to dispatch with one sink
//! per choice, and returns an [`Answer`]. The sinks ([`sink`]) turn tokens into text, match stop
//! strings, count, and leave what is new in an outbox; the front polls the answer and renders what
//! waits there. Nothing is rendered per token while the client reads slower than workers write.
//!
//! Not here: HTTP, gRPC, and how a request finds its worker.

mod answer;
mod backend;
mod ids;
mod live;
mod outbox;
mod pending;
mod record;
mod sink;
mod text;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

pub use self::{
    answer::Answer,
    backend::{Backend, Running},
    outbox::{Next, Render, Usage},
    pending::Delta,
};
use self::{
    live::Live,
    outbox::{Outbox, OutboxConfig},
    record::{Asked, Record},
    sink::ChoiceSink,
    text::AnswerText,
};
use crate::{
    auth::{Caller, Lease},
    config::records::LimitsConfig,
    dispatch::Submission,
    error::{Error, Reason},
    metrics::Metrics,
    status::FleetStatus,
    streams::sink::Sink,
    tokens::{Framing, ServedModel, StopStrings},
    trace::{self, TraceContext, TraceParent},
    validate::{Prompt, Spec},
    wire::worker,
};

/// Text up to this size is tokenized on the front thread; above it would hold up every stream
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

impl Arrival {
    /// Tells the caller's quota what the request used. One without a token cost nothing.
    fn used(&self, prompt_tokens: u32, completion_tokens: u64) {
        if let Some(lease) = self.lease.as_ref().filter(|_| completion_tokens > 0) {
            lease.used(u64::from(prompt_tokens) + completion_tokens);
        }
    }
}

/// One served model behind both fronts. Shared by all front threads.
#[derive(Debug)]
pub struct Service {
    model: Arc<ServedModel>,
    limits: LimitsConfig,
    backend: Box<dyn Backend>,
    metrics: Metrics,
    /// One permit per core: long prompts queue here instead of filling the blocking pool.
    tokenizing: Arc<Semaphore>,
    live: Arc<Live>,
    started: Instant,
}

impl Service {
    /// A service for `model`; `backend` is dispatch, or a test's player of tokens.
    pub fn new(
        model: Arc<ServedModel>,
        limits: LimitsConfig,
        backend: impl Backend + 'static,
        metrics: Metrics,
    ) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            model,
            limits,
            backend: Box::new(backend),
            metrics,
            tokenizing: Arc::new(Semaphore::new(cores)),
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

    /// A snapshot of the fleet.
    pub async fn status(&self) -> FleetStatus {
        self.backend.status().await
    }

    /// Names a request; call it when its head has been read. `traceparent` as it came, or empty:
    /// what is malformed is read past. Refused, counted and logged where the caller's quota is used
    /// up.
    pub fn arrive(&self, caller: Caller, traceparent: String) -> Result<Arrival, Error> {
        let at = Instant::now();
        let lease = caller.begin(at);
        let parent = TraceParent::parse(&traceparent);
        let trace = if trace::is_on() {
            TraceContext::begin(parent)
        } else {
            None
        };
        let mut arrival = Arrival {
            id: ids::request_id()?,
            at,
            caller,
            traceparent: match (trace, parent) {
                (Some(trace), _) => trace.own.header(),
                (None, Some(_)) => traceparent,
                (None, None) => String::new(),
            },
            trace,
            client_id: None,
            lease: None,
        };
        let lease = lease.inspect_err(|error| self.refuse(&arrival, error))?;
        arrival.lease = Some(Arc::new(lease));
        Ok(arrival)
    }

    /// Counts and logs a request that was refused before [`Self::submit`].
    pub fn refuse(&self, arrival: &Arrival, error: &Error) {
        record::refused(arrival, &self.metrics, error);
    }

    /// Starts a request. An error has been counted and logged.
    pub async fn submit(
        &self,
        arrival: Arrival,
        spec: Spec,
        wanted: Wanted,
    ) -> Result<Answer, Error> {
        let prepared = {
            let _preparing = self.metrics.request_preparing();
            self.prepare(&spec).await
        };
        let started = prepared.and_then(|(prompt, max_tokens)| {
            self.start(&arrival, &spec, prompt, max_tokens, wanted)
        });
        started.inspect_err(|error| self.refuse(&arrival, error))
    }

    /// Token ids of a prompt.
    pub async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let (text, framing) = match prompt {
            Prompt::Tokens(ids) => return Ok(ids.clone()),
            Prompt::Text(text) => (text.clone(), Framing::Default),
            Prompt::Messages(messages) => {
                let template = self.model.template.as_ref().ok_or_else(|| {
                    Error::new(Reason::UnsupportedValue, "the model has no chat template")
                })?;
                (template.render(messages)?, Framing::Bare)
            }
        };
        self.refuse_hopeless(&text)?;
        let tokenizer = Arc::clone(&self.model.tokenizer);
        if text.len() <= INLINE_BYTES_MAX {
            return tokenizer.encode(&text, framing);
        }
        let stopped = |_| Error::new(Reason::Draining, "the server is shutting down");
        let permit = Arc::clone(&self.tokenizing).acquire_owned();
        let permit = permit.await.map_err(stopped)?;
        let encode = tokio::task::spawn_blocking(move || {
            // Held until the work is done: a client that leaves does not end it.
            let _permit = permit;
            tokenizer.encode(&text, framing)
        });
        encode
            .await
            .map_err(|_| Error::new(Reason::Internal, "the tokenizer ended early"))?
    }

    /// Refuses a text that cannot fit even if every token were the longest there is: spares its
    /// tokenization.
    fn refuse_hopeless(&self, text: &str) -> Result<(), Error> {
        let longest = self.model.tokenizer.vocabulary().longest().max(1);
        let least = text.len() / longest;
        if least < self.model.max_model_len as usize {
            return Ok(());
        }
        let message = format!(
            "the prompt has at least {least} tokens; the model's context is {} tokens",
            self.model.max_model_len
        );
        Err(Error::new(Reason::ContextLengthExceeded, message))
    }

    async fn prepare(&self, spec: &Spec) -> Result<(Vec<u32>, u32), Error> {
        let prompt = self.tokenize(&spec.prompt).await?;
        if prompt.is_empty() {
            return Err(Error::new(Reason::InvalidValue, "the prompt has no token"));
        }
        let max_tokens = spec.fit(prompt.len(), self.model.max_model_len)?;
        Ok((prompt, max_tokens))
    }

    fn start(
        &self,
        arrival: &Arrival,
        spec: &Spec,
        prompt: Vec<u32>,
        max_tokens: u32,
        wanted: Wanted,
    ) -> Result<Answer, Error> {
        if let Some(lease) = &arrival.lease {
            let answers = u64::from(max_tokens) * u64::from(spec.choices);
            lease.charge(prompt.len() as u64 + answers, arrival.at)?;
        }
        let seed = match spec.sampling.seed {
            Some(seed) => seed,
            None => ids::seed()?,
        };
        let longest = Duration::from_millis(self.limits.request_timeout_ms);
        let deadline = arrival.at + spec.timeout.map_or(longest, |timeout| timeout.min(longest));
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let outbox = Outbox::new(
            OutboxConfig {
                choices: spec.choices as usize,
                wanted,
                bytes_max: self.limits.slow_reader_bytes_max,
                deadline,
            },
            Record::new(
                arrival,
                &self.metrics,
                Asked {
                    prompt_tokens,
                    choices: spec.choices,
                    limit_tokens: max_tokens,
                    operation: match spec.prompt {
                        Prompt::Messages(_) => "chat",
                        Prompt::Text(_) | Prompt::Tokens(_) => "text_completion",
                    },
                },
            ),
        );
        let text = AnswerText::new(
            Arc::clone(&self.model.tokenizer),
            StopStrings::new(&spec.stop),
            spec.min_tokens,
        );
        let sinks = (0..spec.choices as usize)
            .map(|choice| {
                let sink = ChoiceSink::new(Arc::clone(&outbox), choice, text.clone());
                Box::new(sink) as Box<dyn Sink>
            })
            .collect();
        let running = self.backend.submit(Submission {
            request_id: arrival.id.clone(),
            prompt: prompt.into(),
            sampling: sampling(spec, seed),
            limits: worker::Limits {
                max_tokens,
                min_tokens: spec.min_tokens,
                stop_token_ids: spec.stop_token_ids.clone(),
                ignore_eos: spec.ignore_eos,
            },
            adjustments: None,
            prompt_logprobs: None,
            traceparent: arrival.traceparent.clone(),
            tenant: Arc::clone(&arrival.caller.tenant),
            priority: spec.priority,
            deadline,
            sinks,
        });
        let running = running.inspect_err(|_| outbox.forget())?;
        let place = self.live.add(&outbox);
        let id = arrival.id.clone();
        Ok(Answer::new(id, prompt_tokens, outbox, running, place))
    }

    /// Looks after answers that nobody polls: cuts slow readers and overdue requests, asks for
    /// pings. Call it about once a second from each front thread; most calls return at once.
    pub fn sweep(&self, now: Instant) {
        let patience = Duration::from_millis(self.limits.slow_reader_timeout_ms);
        self.live.sweep(now, patience);
    }
}

fn sampling(spec: &Spec, seed: u64) -> worker::Sampling {
    worker::Sampling {
        temperature: spec.sampling.temperature,
        top_p: spec.sampling.top_p,
        top_k: spec.sampling.top_k,
        min_p: spec.sampling.min_p,
        seed,
        choice: 0,
        top_logprobs: spec.top_logprobs,
    }
}
