//! Front threads with a listener for workers each, and the brain's thread.

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dopd_core::policy::PolicyConfig;
use dopd_router::{
    config::records::{LimitsConfig, WorkersConfig},
    dispatch::{BrainThread, Dispatch, DispatchConfig, Submission, Ticket},
    error::Error,
    metrics::Metrics,
    wire::worker::{Limits, Sampling},
    workers::{self, AttachConfig, Attachments},
};
use tokio::{net::TcpListener, sync::mpsc, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::sink::{Answer, recorder};

/// The join token of all test routers.
pub(crate) const TOKEN: &str = "test-token";

/// Seed of all test requests.
pub(crate) const SEED: u64 = 7;

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// How a test router differs from the usual one.
pub(crate) struct Options {
    pub(crate) threads: usize,
    pub(crate) limits: LimitsConfig,
    pub(crate) workers: WorkersConfig,
    pub(crate) model_hash: Option<[u8; 32]>,
    pub(crate) vocab_size: Option<u32>,
    pub(crate) record: Option<PathBuf>,
    pub(crate) policy: PolicyConfig,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            limits: LimitsConfig::default(),
            // Scripted workers say nothing for long, and the machine may be slow.
            workers: WorkersConfig {
                lease_ms: 120_000,
                report_interval_ms: 10_000,
                ..WorkersConfig::default()
            },
            model_hash: None,
            vocab_size: None,
            record: None,
            policy: PolicyConfig::default(),
        }
    }
}

/// A running router.
pub(crate) struct Router {
    pub(crate) dispatch: Dispatch,
    pub(crate) metrics: Metrics,
    /// Where workers of each front thread dial: the test chooses a worker's home.
    pub(crate) addresses: Vec<SocketAddr>,
    jobs: Vec<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    brain: Option<BrainThread>,
    stop: CancellationToken,
}

impl Router {
    pub(crate) fn start(options: Options) -> Self {
        let metrics = Metrics::new("test");
        let (dispatch, brain) = Dispatch::start(DispatchConfig {
            explain_decisions_max: 64,
            limits: options.limits,
            policy: options.policy.clone(),
            prefix_cache: true,
            front_threads: options.threads,
            record: options.record,
            record_bytes_max: 1 << 20,
        })
        .unwrap();
        let attachments = Attachments::new(
            AttachConfig {
                workers: options.workers,
                join_token: TOKEN.to_owned(),
                model_name: "test".to_owned(),
                model_hash: options.model_hash,
                vocab_size: options.vocab_size,
                step: options.policy.step,
                prefix_cache: true,
            },
            metrics.clone(),
        )
        .unwrap();
        let mut router = Self {
            dispatch,
            metrics,
            addresses: Vec::new(),
            jobs: Vec::new(),
            threads: Vec::new(),
            brain: Some(brain),
            stop: CancellationToken::new(),
        };
        for index in 0..options.threads {
            router.front(index, Arc::clone(&attachments));
        }
        router
    }

    fn front(&mut self, index: usize, attachments: Arc<Attachments>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        self.addresses.push(listener.local_addr().unwrap());
        let (jobs, mut queue) = mpsc::channel::<Job>(64);
        self.jobs.push(jobs);
        let dispatch = self.dispatch.clone();
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let front = tokio::task::spawn_local(dispatch.front(index));
                let serving = tokio::task::spawn_local(workers::serve(listener, attachments, stop));
                tokio::task::spawn_local(async move {
                    while let Some(job) = queue.recv().await {
                        job().await;
                    }
                });
                serving.await.unwrap().unwrap();
                front.await.unwrap();
            });
        }));
    }

    /// Runs `job` on a front thread.
    pub(crate) async fn on<T: Send + 'static>(
        &self,
        thread: usize,
        job: impl FnOnce(&Dispatch) -> T + Send + 'static,
    ) -> T {
        let (answer, result) = oneshot::channel();
        let dispatch = self.dispatch.clone();
        let job: Job = Box::new(move || {
            drop(answer.send(job(&dispatch)));
            Box::pin(std::future::ready(()))
        });
        assert!(
            self.jobs[thread].send(job).await.is_ok(),
            "front thread ended"
        );
        result.await.unwrap()
    }

    /// Submits a request on front thread `thread`.
    pub(crate) async fn submit_on(
        &self,
        thread: usize,
        request: Request,
    ) -> Result<(Ticket, Vec<Answer>), Error> {
        let (sinks, answers) = (0..request.choices)
            .map(|_| recorder(request.stop_after))
            .unzip();
        let submission = Submission {
            request_id: request.id.to_owned(),
            prompt: request.prompt.into(),
            sampling: Sampling {
                seed: SEED,
                top_logprobs: request.top_logprobs,
                ..Sampling::default()
            },
            limits: Limits {
                max_tokens: request.max_tokens,
                ..Limits::default()
            },
            adjustments: None,
            prompt_logprobs: request.prompt_logprobs,
            traceparent: String::new(),
            tenant: "default".into(),
            priority: 0,
            weight: 1,
            slo: dopd_core::request::Slo::default(),
            prefix_salt: Some([7; 16]),
            deadline: Instant::now() + request.timeout,
            sinks,
        };
        let ticket = self
            .on(thread, move |dispatch| dispatch.submit(submission))
            .await?;
        Ok((ticket, answers))
    }

    /// Submits a request of one choice on front thread 0.
    pub(crate) async fn submit(&self, request: Request) -> (Ticket, Answer) {
        let (ticket, mut answers) = self.submit_on(0, request).await.unwrap();
        (ticket, answers.remove(0))
    }

    /// Waits until no worker has an open seat in the brain's account.
    pub(crate) async fn idle(&self) {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            let status = self.dispatch.status().await;
            if status.workers.iter().all(|worker| worker.seats == 0) {
                return;
            }
            assert!(Instant::now() < deadline, "seats stay open: {status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the brain says `state` of the worker `name`; none: it is not attached.
    pub(crate) async fn until_state(&self, name: &str, state: Option<&str>) {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            let status = self.dispatch.status().await;
            let worker = status.workers.iter().find(|worker| worker.id == name);
            if worker.map(|worker| worker.state.as_str()) == state {
                return;
            }
            assert!(Instant::now() < deadline, "never {state:?}: {status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until a worker is shown with links over these transports, after its newest report.
    pub(crate) async fn until_links(&self, name: &str, transports: &[&str], step: u64) {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            let status = self.dispatch.status().await;
            let worker = status.workers.iter().find(|worker| worker.id == name);
            if let Some(worker) = worker.filter(|worker| worker.steps == step) {
                let links = worker.links.iter().map(|link| &*link.transport);
                assert_eq!(links.collect::<Vec<_>>(), transports);
                return;
            }
            assert!(Instant::now() < deadline, "never step {step}: {status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Drops a ticket where it was made, as a front does.
    pub(crate) async fn cancel_on(&self, thread: usize, ticket: Ticket) {
        self.on(thread, move |_| drop(ticket)).await;
    }

    /// Ends everything; every thread must end by itself.
    pub(crate) fn end(mut self) {
        self.dispatch.shutdown();
        self.stop.cancel();
        self.jobs.clear();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.brain.take().unwrap().join().unwrap();
    }
}

/// What a test submits.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: &'static str,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: u32,
    pub(crate) choices: usize,
    pub(crate) top_logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) stop_after: usize,
    pub(crate) timeout: Duration,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            id: "r1",
            prompt: (1..=20).collect(),
            max_tokens: 8,
            choices: 1,
            top_logprobs: None,
            prompt_logprobs: None,
            stop_after: usize::MAX,
            timeout: Duration::from_secs(600),
        }
    }
}
