//! What `dopd status --json` and the metrics page show: a snapshot of the fleet, made by dispatch
//! on demand.

use std::{collections::BTreeMap, future::Future, time::Duration};

use serde::Serialize;

/// Workers that are named where the router is not ready, and the time to learn them.
const EXPLAIN_WORKERS_MAX: usize = 16;
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a request that comes now would be answered: the body of `/ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// `ready`, or in one word what is missing.
    pub status: &'static str,
    /// The same in a sentence, if it is not ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Readiness {
    /// It would.
    pub fn ready() -> Self {
        Self {
            status: "ready",
            message: String::new(),
        }
    }

    /// It would not.
    pub fn missing(status: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// With the states of all workers behind it, unless the answer does not come.
    pub async fn explained(mut self, fleet: impl Future<Output = FleetStatus>) -> Self {
        let Ok(fleet) = tokio::time::timeout(EXPLAIN_TIMEOUT, fleet).await else {
            self.message.push_str("; the scheduler does not answer");
            return self;
        };
        let more = fleet.workers.len().saturating_sub(EXPLAIN_WORKERS_MAX);
        let shown = fleet.workers.iter().take(EXPLAIN_WORKERS_MAX);
        let mut states: Vec<String> = shown
            .map(|worker| format!("{} {}", worker.id, worker.state))
            .collect();
        states.extend((more > 0).then(|| format!("and {more} more")));
        let states = if states.is_empty() {
            "none attached".to_owned()
        } else {
            states.join(", ")
        };
        self.message = format!("{}; workers: {states}", self.message);
        self
    }

    /// Whether it would.
    pub fn is_ready(&self) -> bool {
        self.status == "ready"
    }
}

/// The fleet at one instant.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FleetStatus {
    /// Attached workers, by name.
    pub workers: Vec<WorkerStatus>,
    /// Requests that wait in the brain.
    pub requests_waiting: usize,
    /// Prompt tokens that wait in the brain.
    pub tokens_waiting: u64,
    /// Sequences that have a seat.
    pub sequences_running: usize,
    /// Hand-offs under way.
    pub handoffs_running: usize,
    /// Hand-offs that arrived since start.
    pub handoffs_total: u64,
    /// Sequences computed again since start.
    pub replays_total: u64,
    /// Hand-offs since start by outcome.
    pub handoffs_by: BTreeMap<&'static str, u64>,
    /// Sequences computed again since start by reason.
    pub replays_by: BTreeMap<&'static str, u64>,
    /// Tokens computed again for them since start.
    pub replay_tokens_total: u64,
    /// Sequences placed again since start because a worker refused them.
    pub retries_total: u64,
    /// Workers ejected since start by cause.
    pub ejections_by: BTreeMap<&'static str, u64>,
    /// Requests given up since start because workers died under them.
    pub poison_total: u64,
    /// Requests given up since start because they could not be done before their deadline.
    pub hopeless_total: u64,
    /// What scheduling did since start besides placing: `stolen`, `demoted`, `late`, `evicted`.
    pub decisions_by: BTreeMap<&'static str, u64>,
    /// Breakers opened since start by scope: `worker` or `pair`.
    pub breaker_openings_by: BTreeMap<&'static str, u64>,
    /// Pairs of workers between which no hand-off is tried for now.
    pub pairs_open: usize,
}

/// `GET /status` of the OpenAI listener and of the admin listener.
#[derive(Clone, Debug, Serialize)]
pub struct StatusPage<'a> {
    /// Name of the served model.
    pub model: &'a str,
    /// The router's version.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The fleet, its fields beside those above.
    #[serde(flatten)]
    pub fleet: FleetStatus,
}

/// One attached worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub id: String,
    /// Process id on its host.
    pub pid: u32,
    /// `prefill`, `decode` or `mixed`.
    pub role: String,
    /// `ready`, `suspect` or `draining`.
    pub state: String,
    /// What its failures of late lead to: `closed` (nothing), `open` (no new work for a while) or
    /// `half_open` (one sequence at a time).
    pub breaker: &'static str,
    /// Where its data link listens.
    pub address: String,
    /// Device.
    pub device: String,
    /// The data links on which it ships that are up.
    pub links: Vec<LinkStatus>,
    /// Seats open at the worker.
    pub seats: u32,
    /// Seats that take part in steps.
    pub running: u32,
    /// Prompt tokens that are not computed yet.
    pub prefill_tokens_queued: u32,
    /// Duration of the last step in microseconds.
    pub step_us: u32,
    /// Steps since its start.
    pub steps: u64,
    /// Those that computed prompts beside sequences that decode.
    pub steps_mixed: u64,
    /// Those that computed prompts while sequences that decode waited.
    pub steps_paused: u64,
    /// How much dearer mixed steps are here, as it has learnt; in thousandths.
    pub mixed_penalty_permille: u32,
    /// Seats since its start whose pages were needed by others.
    pub preempted: u64,
    /// Tokens per page.
    pub page_size: u32,
    /// Pages by state; they add up to `total`.
    pub pages: PageStatus,
}

/// A data link, as the worker that ships on it sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// Name of the worker that is written to.
    pub peer: String,
    /// `cuda_ipc`, `nccl`, `shm` or `tcp`.
    pub transport: String,
    /// Measured rate of writes; 0: not yet.
    pub bytes_per_s: u64,
}

/// Pages of one worker by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageStatus {
    /// In the pool.
    pub total: u32,
    /// Can be taken.
    pub free: u32,
    /// Owned by a seat.
    pub owned: u32,
    /// In the prefix cache.
    pub cached: u32,
    /// May still be written by a peer.
    pub fenced: u32,
}
