//! Drives the brain: turns requests and reports into events, actions into commands.
//!
//! One [`Dispatch`] per router, cloned everywhere. The brain lives on a thread of its own
//! ([`BrainThread`]); each front thread runs [`Dispatch::front`] once and owns the streams of the
//! requests that were submitted on it. Called by `service` (submit), `main` (start, drain,
//! shutdown) and `admin` (status).
mod driver;
mod explained;
mod front;
mod pulse;
mod record;
mod reject;
#[doc(hidden)]
pub mod sim;
mod stats;
mod status;
pub mod submission;
mod tally;
mod thread;
mod ticket;

pub use explained::ExplainPage;
pub use submission::Submission;
pub use thread::BrainThread;
pub use ticket::Ticket;

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use dopd_core::{
    brain::BrainConfig,
    ids::{RequestId, SequenceId},
    policy::PolicyConfig,
    request::{RequestFacts, Slo},
    units::{Micros, Tokens},
};
use dopd_sync::{Count, Counted, Watched};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    status::{FleetStatus, Readiness},
    streams::{
        front::Front,
        key::StreamKey,
        messages::{BrainInput, FrontMessage},
        outbox::{BRAIN_QUEUE, FRONT_QUEUE, Queues},
        prefix::Prefix,
        request::{RequestShared, prompt_hash, tenant_hash},
    },
};

/// Hint for a client that met a full input queue: the brain empties it in milliseconds.
const INPUT_FULL_RETRY: Duration = Duration::from_millis(100);

/// Hint for a client that met a router which shuts down.
pub(crate) const DRAINING_RETRY: Duration = Duration::from_secs(1);

/// What dispatch is started with.
#[derive(Clone, Debug)]
pub struct DispatchConfig {
    /// Bounds on requests and waiting.
    pub limits: LimitsConfig,
    /// Which rules are on, checked.
    pub policy: PolicyConfig,
    /// Workers keep what they computed for others with the same beginning.
    pub prefix_cache: bool,
    /// Decisions that are remembered for people; 0: none.
    pub explain_decisions_max: usize,
    /// Number of front threads, at least 1.
    pub front_threads: usize,
    /// File for the brain's event log; one of an earlier run is kept as `FILE.1`.
    pub record: Option<PathBuf>,
    /// Size at which the record ends, in bytes.
    pub record_bytes_max: u64,
}

/// Handle on the brain; cheap to clone.
#[derive(Clone, Debug)]
pub struct Dispatch {
    queues: Queues,
    shared: Arc<Shared>,
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    /// The brain's time 0.
    start: Instant,
    next_request: AtomicU64,
    active: Count,
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    /// Workers keep what they computed for others with the same beginning.
    prefix_cache: bool,
    /// Of the fleet's KV, the same for all workers; 0 until the first one joined.
    page_size: AtomicU32,
    /// Names of requests, for people.
    labels: Mutex<explained::Labels>,
    /// Whether tokens flow.
    pulse: pulse::Pulse,
    /// Tells the brain's thread that `is_draining` changed.
    drain: Notify,
    /// Ends the brain's thread and the front loops.
    stop: CancellationToken,
    /// For each front thread, streams whose ticket was dropped on another one. At most one entry a
    /// request, and those are bounded.
    cancels: Vec<Watched<Vec<Arc<[StreamKey]>>>>,
    /// Each front loop takes its own.
    receivers: Mutex<Vec<Option<mpsc::Receiver<FrontMessage>>>>,
}

impl Shared {
    /// What the brain says of its workers.
    fn set_ready(&self, is_ready: bool) {
        let was_ready = self.is_ready.swap(is_ready, Ordering::AcqRel);
        if is_ready && !was_ready {
            self.pulse.usable();
        }
    }
}

impl Dispatch {
    /// Starts the brain thread.
    pub fn start(config: DispatchConfig) -> Result<(Self, BrainThread), Error> {
        let fronts = u16::try_from(config.front_threads).unwrap_or(0);
        if fronts == 0 {
            return Err(Error::new(
                Reason::Internal,
                format!(
                    "{} front threads, 1 to 65535 are possible",
                    config.front_threads
                ),
            ));
        }
        let (brain, inputs) = mpsc::channel(BRAIN_QUEUE);
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..fronts)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(FRONT_QUEUE);
                (sender, Some(receiver))
            })
            .unzip();
        let dispatch = Self {
            queues: Queues {
                brain,
                fronts: senders.into(),
            },
            shared: Arc::new(Shared {
                start: Instant::now(),
                next_request: AtomicU64::new(1),
                active: Count::default(),
                is_ready: AtomicBool::new(false),
                is_draining: AtomicBool::new(false),
                prefix_cache: config.prefix_cache,
                page_size: AtomicU32::new(0),
                labels: Mutex::new(explained::Labels::new(config.explain_decisions_max)),
                pulse: pulse::Pulse::default(),
                drain: Notify::new(),
                stop: CancellationToken::new(),
                cancels: std::iter::repeat_with(Watched::default)
                    .take(fronts.into())
                    .collect(),
                receivers: Mutex::new(receivers),
            }),
        };
        let brain = driver::start(&dispatch, config, inputs)?;
        Ok((dispatch, brain))
    }

    /// The loop of front thread `index`; run it once on each front thread with `spawn_local`. The
    /// thread can submit from the moment of this call, before the future is first polled. Ends
    /// after [`Dispatch::shutdown`].
    pub fn front(&self, index: usize) -> impl Future<Output = ()> + 'static {
        front::run(self, index)
    }

    /// Takes a request; must be called on a front thread. Its sinks are called on this thread,
    /// never before this returned. Dropping the ticket before the end cancels the request.
    pub fn submit(&self, submission: Submission) -> Result<Ticket, Error> {
        self.submit_counted(submission, &self.shared.active)
    }

    /// The same; `count` holds it until it has ended.
    fn submit_counted(&self, submission: Submission, count: &Count) -> Result<Ticket, Error> {
        if self.shared.is_draining.load(Ordering::Acquire) {
            return Err(draining("the router is shutting down"));
        }
        let front = Front::current()
            .filter(|front| self.owns(front))
            .ok_or_else(|| internal("a request was submitted off the front threads"))?;
        let choices = u8::try_from(submission.sinks.len()).unwrap_or(0);
        let prompt_tokens = u32::try_from(submission.prompt.len()).unwrap_or(0);
        if choices == 0 || prompt_tokens == 0 {
            return Err(internal("a request needs 1 to 255 choices and a prompt"));
        }
        let max_tokens = Tokens(submission.limits.max_tokens);
        let prompt = &submission.prompt;
        let prefix = (submission.prefix_salt.filter(|_| self.shared.prefix_cache))
            .map(|salt| Prefix::new(salt, prompt, self.shared.page_size.load(Ordering::Relaxed)));
        let facts = RequestFacts {
            choices,
            priority: submission.priority,
            deadline: self.micros(submission.deadline.into()),
            slo: submission.slo,
            tenant: tenant_hash(&submission.tenant),
            weight: submission.weight,
            prefix: prefix
                .as_ref()
                .map_or_else(|| [].into(), |it| it.marks(prompt.len())),
            ..RequestFacts::of(self.mint(front.index), Tokens(prompt_tokens), max_tokens)
        };
        (self.shared.labels.lock()).add(&submission.request_id, facts.id);
        let keys = Self::insert(&front, facts.id, submission, prefix, count.enter());
        if let Err(error) = self.queues.brain.try_send(BrainInput::Submitted(facts)) {
            front.streams.cancel(&keys);
            return Err(match error {
                mpsc::error::TrySendError::Full(_) => Error::new(
                    Reason::QueueFull,
                    format!("{BRAIN_QUEUE} messages wait for the scheduler, try again"),
                )
                .with_retry_after(INPUT_FULL_RETRY),
                mpsc::error::TrySendError::Closed(_) => draining("the router has shut down"),
            });
        }
        Ok(Ticket::new(self.clone(), keys))
    }

    /// Makes the streams of a request.
    fn insert(
        front: &Front,
        id: RequestId,
        submission: Submission,
        prefix: Option<Prefix>,
        active: Counted,
    ) -> Arc<[StreamKey]> {
        let request = Arc::new(RequestShared {
            id,
            label: submission.request_id,
            prompt_hash: prompt_hash(&submission.prompt),
            prompt: submission.prompt,
            sampling: submission.sampling,
            limits: submission.limits,
            adjustments: submission.adjustments,
            prompt_logprobs: submission.prompt_logprobs,
            traceparent: submission.traceparent,
            priority: submission.priority,
            tenant: tenant_hash(&submission.tenant),
            slo_tpot_us: slo_tpot_us(submission.slo),
            prefix,
            choices: submission.sinks.len(),
            active,
        });
        let streams = (0_u8..).zip(submission.sinks).map(|(choice, sink)| {
            let sequence = SequenceId {
                request: id,
                choice,
            };
            front.streams.insert(Arc::clone(&request), sequence, sink)
        });
        streams.collect()
    }

    /// A snapshot of the fleet; default values once the brain thread has ended.
    pub async fn status(&self) -> FleetStatus {
        let (answer, status) = oneshot::channel();
        if (self.queues.brain.send(BrainInput::Status(answer)).await).is_err() {
            return FleetStatus::default();
        }
        status.await.unwrap_or_default()
    }

    /// Whether a worker is attached that takes requests.
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready.load(Ordering::Acquire)
    }

    /// Whether a request that comes now would be answered.
    pub fn readiness(&self) -> Readiness {
        if self.shared.is_draining.load(Ordering::Acquire) {
            return Readiness::missing("draining", "the router is shutting down");
        }
        if !self.is_ready() {
            return Readiness::missing("no_worker", "no worker takes requests");
        }
        self.shared.pulse.readiness(self.shared.start.elapsed())
    }

    /// Refuses new requests from now on; running ones go on.
    pub fn drain(&self) {
        self.shared.is_draining.store(true, Ordering::Release);
        self.shared.drain.notify_one();
    }

    /// Requests of clients that have not ended.
    pub fn active(&self) -> usize {
        self.shared.active.get()
    }

    /// Ends the brain thread and all front loops; requests that run fail with `draining`.
    pub fn shutdown(&self) {
        self.drain();
        self.shared.stop.cancel();
    }

    /// Resolves once the brain thread ends or is told to: after [`Dispatch::shutdown`], or because
    /// of a defect, which [`BrainThread::join`] then tells.
    pub async fn stopped(&self) {
        self.shared.stop.cancelled().await;
    }

    /// A new request id that names its owner thread: id modulo number of front threads.
    fn mint(&self, thread: u16) -> RequestId {
        let count = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        RequestId(count * self.queues.fronts.len() as u64 + u64::from(thread))
    }

    /// An instant on the brain's clock; its start if it was before.
    fn micros(&self, at: Instant) -> Micros {
        let since = at.saturating_duration_since(self.shared.start);
        Micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// Whether `front` belongs to this router: a test may have several.
    fn owns(&self, front: &Front) -> bool {
        let queues = front.outbox.queues();
        queues.brain.same_channel(&self.queues.brain)
    }
}

/// The brain's settings, as far as the router has them.
fn brain_config(config: &DispatchConfig, seed: u64) -> BrainConfig {
    let limits = &config.limits;
    BrainConfig {
        seed,
        queue_requests_max: limits.queue_requests_max,
        queue_tokens_max: limits.queue_tokens_max,
        no_worker_wait: Micros::from_millis(limits.no_worker_wait_ms),
        explain_decisions_max: config.explain_decisions_max,
        policy: config.policy.clone(),
        ..BrainConfig::default()
    }
}

/// The owner of a sequence's stream; see [`Dispatch::mint`].
fn owner(sequence: SequenceId, fronts: usize) -> usize {
    usize::try_from(sequence.request.0 % fronts.max(1) as u64).unwrap_or(0)
}

fn slo_tpot_us(slo: Slo) -> u32 {
    slo.tpot
        .map_or(0, |tpot| u32::try_from(tpot.0).unwrap_or(u32::MAX))
}

fn internal(message: &'static str) -> Error {
    Error::new(Reason::Internal, message)
}

fn draining(message: &'static str) -> Error {
    Error::new(Reason::Draining, message).with_retry_after(DRAINING_RETRY)
}
