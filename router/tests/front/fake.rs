//! A backend that plays scripted tokens, and a server around it.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dopd_core::request::Slo;
use dopd_router::{
    auth::Gate,
    config::records::{HttpConfig, LimitsConfig, ModelConfig, SloConfig},
    dispatch::Submission,
    drain::Stop,
    error::Error,
    metrics::Metrics,
    service::{Backend, Running, Service},
    status::FleetStatus,
    streams::sink::{FinishReason, Flow, SeatNews, TokenChunk, TokenLogprobs},
    tokens::ServedModel,
    wire::worker,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Semaphore, task::LocalSet};

/// One thing that happens to every choice of a request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Tokens in one report: bytes, with the mock's tokenizer.
    Text(&'static str),
    /// Token ids with log probabilities.
    Logprobs(Vec<u32>, Vec<TokenLogprobs>),
    /// Log probabilities of the prompt from a position on.
    PromptLogprobs(u32, Vec<f32>),
    /// One token of each choice, with its log probability.
    Each(Vec<(u32, f32)>),
    /// A worker takes each choice.
    Placed,
    /// Waits for a permit of [`Fake::gate`].
    Gate,
    /// Ends well.
    Finish(FinishReason),
    /// Fails.
    Fail(Error),
}

/// Plays the same script to each request.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    script: Arc<Vec<Step>>,
    /// Lets a script go on past [`Step::Gate`].
    pub(crate) gate: Arc<Semaphore>,
    /// Requests that were dropped before their end.
    pub(crate) cancelled: Arc<AtomicUsize>,
    /// Choices that asked to stop.
    pub(crate) stopped: Arc<AtomicUsize>,
    /// What was submitted: prompt, sampling, limits.
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Refuses every request.
    pub(crate) refusal: Option<Error>,
    /// Refuses requests after so many.
    pub(crate) refuse_after: Option<(usize, Error)>,
}

/// A submission, without its sinks.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) prompt: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
    pub(crate) choices: usize,
    pub(crate) sampling: worker::Sampling,
    pub(crate) limits: worker::Limits,
    pub(crate) adjustments: Option<worker::LogitAdjustments>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) priority: i32,
    pub(crate) slo: Slo,
    pub(crate) weight: u32,
    pub(crate) tenant: Arc<str>,
}

impl Fake {
    pub(crate) fn new(script: Vec<Step>) -> Self {
        Self {
            script: Arc::new(script),
            gate: Arc::new(Semaphore::new(0)),
            cancelled: Arc::default(),
            stopped: Arc::default(),
            seen: Arc::default(),
            refusal: None,
            refuse_after: None,
        }
    }
}

/// Counts a drop before the end.
struct Ticket {
    ended: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.ended.load(Ordering::Relaxed) == 0 {
            self.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Backend for Fake {
    fn submit(&self, submission: Submission) -> Result<Running, Error> {
        if let Some(error) = &self.refusal {
            return Err(error.clone());
        }
        if let Some((taken, error)) = &self.refuse_after
            && self.seen.lock().len() >= *taken
        {
            return Err(error.clone());
        }
        self.seen.lock().push(Seen {
            prompt: submission.prompt.to_vec(),
            seed: submission.sampling.seed,
            max_tokens: submission.limits.max_tokens,
            choices: submission.sinks.len(),
            sampling: submission.sampling,
            limits: submission.limits.clone(),
            adjustments: submission.adjustments.clone(),
            prompt_logprobs: submission.prompt_logprobs,
            priority: submission.priority,
            slo: submission.slo,
            weight: submission.weight,
            tenant: Arc::clone(&submission.tenant),
        });
        let ended = Arc::new(AtomicUsize::new(0));
        let ticket = Ticket {
            ended: Arc::clone(&ended),
            cancelled: Arc::clone(&self.cancelled),
        };
        tokio::spawn(play(self.clone(), submission, ended));
        Ok(Box::new(ticket))
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn status(&self) -> Pin<Box<dyn Future<Output = FleetStatus> + Send + '_>> {
        Box::pin(async { FleetStatus::default() })
    }
}

async fn play(fake: Fake, submission: Submission, ended: Arc<AtomicUsize>) {
    let mut sinks = submission.sinks;
    for step in fake.script.iter() {
        // As a worker's report would: never in the caller's own poll.
        tokio::task::yield_now().await;
        if matches!(step, Step::Gate) {
            fake.gate.acquire().await.unwrap().forget();
            continue;
        }
        if matches!(step, Step::Finish(_) | Step::Fail(_)) {
            ended.store(1, Ordering::Relaxed);
        }
        let mut choice = 0;
        sinks.retain_mut(|sink| {
            let (tokens, logprobs) = match step {
                Step::Text(text) => (text.bytes().map(u32::from).collect(), Vec::new()),
                Step::Logprobs(tokens, logprobs) => (tokens.clone(), logprobs.clone()),
                Step::Each(tokens) => {
                    let (token, logprob) = tokens[choice];
                    choice += 1;
                    (vec![token], entries(&[logprob]))
                }
                Step::PromptLogprobs(start, chosen) => {
                    sink.prompt_logprobs(*start, &entries(chosen));
                    return true;
                }
                Step::Placed => {
                    let worker = Arc::from("prefill-0");
                    sink.seat(SeatNews::Placed { worker: &worker });
                    return true;
                }
                Step::Gate => return true,
                Step::Finish(reason) => {
                    sink.finish(*reason);
                    return false;
                }
                Step::Fail(error) => {
                    sink.fail(error.clone());
                    return false;
                }
            };
            let flow = sink.tokens(TokenChunk {
                tokens: &tokens,
                logprobs: &logprobs,
            });
            if flow == Flow::Stop {
                fake.stopped.fetch_add(1, Ordering::Relaxed);
            }
            flow == Flow::Continue
        });
        if sinks.is_empty() {
            ended.store(1, Ordering::Relaxed);
            return;
        }
    }
}

/// Log probabilities without alternatives.
pub(crate) fn entries(chosen: &[f32]) -> Vec<TokenLogprobs> {
    let entry = |chosen: &f32| TokenLogprobs {
        chosen: *chosen,
        top: Vec::new(),
    };
    chosen.iter().map(entry).collect()
}

/// The mock model with a short context, so that limits are within reach.
pub(crate) fn model(max_model_len: u32) -> Arc<ServedModel> {
    let config = ModelConfig {
        max_model_len: Some(max_model_len),
        ..ModelConfig::default()
    };
    Arc::new(ServedModel::mock(&config).unwrap())
}

pub(crate) fn service(fake: Fake, limits: LimitsConfig) -> Arc<Service> {
    Service::new(
        model(1_024),
        limits,
        SloConfig::default(),
        fake,
        Metrics::new("mock"),
    )
}

/// Runs `test` beside an HTTP server with `config` on a free port; both end together.
pub(crate) fn with_http<F: Future<Output = ()>>(
    fake: Fake,
    config: HttpConfig,
    limits: LimitsConfig,
    test: impl FnOnce(SocketAddr) -> F,
) {
    with_gate(fake, Gate::default(), config, limits, test);
}

/// The same behind `gate`.
pub(crate) fn with_gate<F: Future<Output = ()>>(
    fake: Fake,
    gate: Gate,
    config: HttpConfig,
    limits: LimitsConfig,
    test: impl FnOnce(SocketAddr) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Stop::default();
        let service = service(fake, limits);
        let server =
            dopd_router::http::serve(listener, service, Arc::new(gate), config, stop.clone());
        let server = tokio::task::spawn_local(server);
        test(address).await;
        stop.end.cancel();
        server.await.unwrap();
    });
}

/// The same with default limits.
pub(crate) fn serve<F: Future<Output = ()>>(fake: Fake, test: impl FnOnce(SocketAddr) -> F) {
    with_http(fake, HttpConfig::default(), LimitsConfig::default(), test);
}
