//! How many tokens does one core of mock workers make? A router that only counts.
//!
//! ```text
//! cargo run --release -p dopd-mock --example sink -- 127.0.0.1:50099 256 10 &
//! cargo run --release -p dopd-mock -- --workers mixed=1 --join 127.0.0.1:50099
//! ```
//!
//! Keeps SEQS sequences open at every worker that dials in, and after SECONDS prints one JSON line:
//! tokens, reports, and the CPU time of the workers' process. Tokens per CPU second depend less
//! than tokens per second on what else the machine does.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a measuring program, not part of the product"
)]

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dopd_mock::model;
use dopd_router::wire::worker::{
    AttachRequest, AttachResponse, Cmd, Command, Compute, KvCheck, KvScrub, Limits, Open, Report,
    Sampling, Welcome, attach_request, attach_response, command, open,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// Answer tokens of each sequence.
const MAX_TOKENS: u32 = 1_000;
/// Prompt tokens of each sequence.
const PROMPT: u32 = 100;
/// Ticks per second of /proc/PID/stat.
const TICKS: f64 = 100.0;

#[derive(Default)]
struct Counts {
    tokens: AtomicU64,
    reports: AtomicU64,
    workers: AtomicU64,
    pid: AtomicU64,
}

struct Sink {
    seqs: u32,
    counts: Arc<Counts>,
}

fn open(slot: u32) -> Command {
    let prompt: Vec<u32> = (0..PROMPT).map(|index| 32 + index % 95).collect();
    let kind = command::Kind::Open(Open {
        slot,
        pages: (PROMPT + MAX_TOKENS).div_ceil(model::PAGE_SIZE),
        prompt_tokens: PROMPT,
        prompt_hash: model::prompt_hash(&prompt),
        sampling: Some(Sampling {
            seed: u64::from(slot),
            temperature: 1.0,
            ..Sampling::default()
        }),
        limits: Some(Limits {
            max_tokens: MAX_TOKENS,
            ignore_eos: true,
            ..Limits::default()
        }),
        kind: Some(open::Kind::Compute(Compute {
            prompt,
            answer: Vec::new(),
            prompt_group: 0,
        })),
        ..Open::default()
    });
    Command { kind: Some(kind) }
}

fn response(kind: attach_response::Kind) -> AttachResponse {
    AttachResponse { kind: Some(kind) }
}

/// Counts one worker's tokens and opens anew what closed.
async fn drain(
    session: u64,
    mut requests: Streaming<AttachRequest>,
    commands: mpsc::Sender<Result<AttachResponse, Status>>,
    counts: Arc<Counts>,
) {
    let mut heartbeat = Instant::now();
    while let Ok(Some(message)) = requests.message().await {
        let Some(attach_request::Kind::Report(report)) = message.kind else {
            return;
        };
        let Report {
            tokens,
            closed_slots,
            ..
        } = report;
        counts
            .tokens
            .fetch_add(tokens.len() as u64, Ordering::Relaxed);
        counts.reports.fetch_add(1, Ordering::Relaxed);
        if closed_slots.is_empty() && heartbeat.elapsed() < Duration::from_millis(500) {
            continue;
        }
        heartbeat = Instant::now();
        let commands_of_it = closed_slots.into_iter().map(open).collect();
        let cmd = attach_response::Kind::Cmd(Cmd {
            session,
            commands: commands_of_it,
        });
        if commands.send(Ok(response(cmd))).await.is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl WorkerService for Sink {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|message| message.kind);
        let Some(attach_request::Kind::Hello(hello)) = first else {
            return Err(Status::invalid_argument("hello expected"));
        };
        self.counts
            .pid
            .store(u64::from(hello.pid), Ordering::Relaxed);
        let session = self.counts.workers.fetch_add(1, Ordering::Relaxed) + 1;
        let (commands, stream) = mpsc::channel(64);
        let welcome = attach_response::Kind::Welcome(Welcome {
            session,
            router: "sink".to_owned(),
            lease_ms: 3_000,
            report_interval_ms: 200,
            kv_check: KvCheck::Header.into(),
            kv_scrub: KvScrub::Tenant.into(),
            step_policy: None,
            prefix_cache: false,
        });
        let first = attach_response::Kind::Cmd(Cmd {
            session,
            commands: (0..self.seqs).map(open).collect(),
        });
        commands.try_send(Ok(response(welcome))).expect("room");
        commands.try_send(Ok(response(first))).expect("room");
        let mut tasks = JoinSet::new();
        tasks.spawn(drain(session, requests, commands, self.counts.clone()));
        tasks.detach_all();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// CPU seconds of a process so far.
fn cpu_seconds(pid: u64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS
}

async fn measure(seconds: u64, counts: &Counts) {
    while counts.tokens.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid = counts.pid.load(Ordering::Relaxed);
    let now = || {
        let tokens = counts.tokens.load(Ordering::Relaxed);
        (
            tokens,
            counts.reports.load(Ordering::Relaxed),
            cpu_seconds(pid),
            Instant::now(),
        )
    };
    let begun = now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let ended = now();
    let (tokens, reports) = ((ended.0 - begun.0) as f64, (ended.1 - begun.1) as f64);
    let (cpu, wall) = (ended.2 - begun.2, (ended.3 - begun.3).as_secs_f64());
    println!(
        "{{\"workers\": {}, \"tokens_per_s\": {:.0}, \"tokens_per_cpu_s\": {:.0}, \
         \"reports_per_s\": {:.0}, \"cpu_us_per_report\": {:.2}, \"cpu_share\": {:.2}}}",
        counts.workers.load(Ordering::Relaxed),
        tokens / wall,
        tokens / cpu,
        reports / wall,
        cpu * 1e6 / reports,
        cpu / wall,
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let flags: Vec<String> = std::env::args().skip(1).collect();
    let [address, seqs, seconds] = &flags[..] else {
        println!("usage: sink ADDRESS SEQS SECONDS");
        return;
    };
    let counts = Arc::new(Counts::default());
    let sink = Sink {
        seqs: seqs.parse().expect("SEQS is a number"),
        counts: counts.clone(),
    };
    let listener = TcpListener::bind(address).await.expect("ADDRESS is free");
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(WorkerServiceServer::new(sink))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        ended = server => ended.expect("serves"),
        () = measure(seconds.parse().expect("SECONDS is a number"), &counts) => {}
    }
}
