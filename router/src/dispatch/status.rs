//! The brain's view of the fleet, with what only the sessions know.

use dopd_core::{
    brain::{BrainStatus, SessionStatus},
    fleet::Role,
};

use crate::{
    dispatch::{driver::Session, tally::Tally},
    status::{FleetStatus, PageStatus, WorkerStatus},
};

/// Why sequences are computed again, as metrics say it; every one has a row from the start.
const REPLAY_REASONS: [&str; 8] = [
    "worker_died",
    "worker_broken",
    "worker_left",
    "worker_silent",
    "worker_stuck",
    "asked",
    "lost",
    "preempted",
];

/// One snapshot; `session` finds what dispatch knows of a session.
pub(super) fn fleet<'a>(
    brain: &BrainStatus,
    handoffs: &Tally,
    session: impl Fn(&SessionStatus) -> Option<&'a Session>,
) -> FleetStatus {
    let mut workers: Vec<WorkerStatus> = (brain.sessions.iter())
        .map(|status| worker(status, session(status)))
        .collect();
    workers.sort_by(|a, b| a.id.cmp(&b.id));
    let replays = |reason| (reason, brain.replays_by.get(reason).copied().unwrap_or(0));
    FleetStatus {
        workers,
        requests_waiting: brain.requests_waiting,
        tokens_waiting: brain.tokens_waiting,
        sequences_running: brain.sequences_running,
        handoffs_running: brain.handoffs_running,
        handoffs_total: brain.handoffs_total,
        replays_total: brain.replays_total,
        handoffs_by: handoffs.by_outcome().collect(),
        replays_by: REPLAY_REASONS.into_iter().map(replays).collect(),
        retries_total: replays("refused").1,
    }
}

fn worker(status: &SessionStatus, session: Option<&Session>) -> WorkerStatus {
    let load = &status.load;
    let (total, free) = (status.pages_total.0, load.pages_free.0);
    let (cached, fenced) = (load.pages_cached.0, load.pages_fenced.0);
    // Before its first report a worker's pages are all free.
    let free = if load.step == 0 && free == 0 {
        total - cached - fenced
    } else {
        free
    };
    WorkerStatus {
        id: status.name.clone(),
        pid: session.map_or(0, |session| session.pid),
        role: match status.role {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Mixed => "mixed",
        }
        .to_owned(),
        state: if status.is_draining {
            "draining"
        } else if status.ejected.is_some() {
            "suspect"
        } else {
            "ready"
        }
        .to_owned(),
        address: session.map_or_else(String::new, |session| session.address.clone()),
        device: session.map_or_else(String::new, |session| session.device.clone()),
        seats: status.seats_open,
        running: load.running,
        prefill_tokens_queued: load.prefill_tokens_queued.0,
        step_us: load.step_us,
        steps: load.step,
        page_size: status.page_size,
        pages: PageStatus {
            total,
            free,
            owned: total.saturating_sub(free + cached + fenced),
            cached,
            fenced,
        },
    }
}
