//! The brain's view of the fleet, with what only the sessions know.

use std::collections::BTreeMap;

use dopd_core::{
    brain::{BrainStatus, BreakerState, SessionStatus},
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
    FleetStatus {
        workers,
        requests_waiting: brain.requests_waiting,
        tokens_waiting: brain.tokens_waiting,
        sequences_running: brain.sequences_running,
        handoffs_running: brain.handoffs_running,
        handoffs_total: brain.handoffs_total,
        replays_total: brain.replays_total,
        handoffs_by: handoffs.by_outcome().collect(),
        replays_by: counts(&brain.replays_by, REPLAY_REASONS),
        replay_tokens_total: brain.replay_tokens_total,
        retries_total: brain.replays_by.get("refused").copied().unwrap_or(0),
        ejections_by: counts(&brain.ejections_by, ["silent", "stuck"]),
        poison_total: brain.poison_total,
        hopeless_total: brain.hopeless_total,
        decisions_by: [
            ("stolen", brain.stolen_total),
            ("demoted", brain.demotions_total),
            ("late", brain.late_total),
            ("evicted", brain.evicted_total),
        ]
        .into(),
        breaker_openings_by: counts(&brain.breaker_openings_by, ["worker", "pair"]),
        pairs_open: brain.pairs_open,
    }
}

/// A count for each word, also for those that did not happen.
fn counts<const N: usize>(
    happened: &BTreeMap<&'static str, u64>,
    words: [&'static str; N],
) -> BTreeMap<&'static str, u64> {
    (words.into_iter())
        .map(|word| (word, happened.get(word).copied().unwrap_or(0)))
        .collect()
}

fn worker(status: &SessionStatus, session: Option<&Session>) -> WorkerStatus {
    let load = &status.load;
    let (total, free) = (status.pages_total.0, load.pages_free.0);
    let (cached, fenced) = (load.pages_cached.0, load.pages_fenced.0);
    // Before its first report a worker's pages are all free. Its first one may come without a step
    // and with all of them owned, by imports.
    let is_unknown = load.pages_owned.0 == 0 && [free, cached, fenced] == [0, 0, 0];
    let free = if is_unknown { total } else { free };
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
        breaker: match status.breaker {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        },
        address: session.map_or_else(String::new, |session| session.address.clone()),
        device: session.map_or_else(String::new, |session| session.device.clone()),
        links: session.map_or_else(Vec::new, |session| session.links.clone()),
        seats: status.seats_open,
        running: load.running,
        prefill_tokens_queued: load.prefill_tokens_queued.0,
        step_us: load.step_us,
        steps: load.step,
        steps_mixed: load.steps_mixed,
        steps_paused: load.steps_paused,
        mixed_penalty_permille: load.mixed_penalty_permille,
        preempted: load.preempted,
        page_size: status.page_size,
        pages: PageStatus {
            total,
            free,
            owned: load.pages_owned.0,
            cached,
            fenced,
        },
    }
}

#[cfg(test)]
mod tests {
    use dopd_core::{fleet::WorkerLoad, ids::SessionId, units::Pages};

    use super::*;

    fn pages_of(load: WorkerLoad) -> [u32; 5] {
        let status = SessionStatus {
            session: SessionId(1),
            name: "w".to_owned(),
            role: Role::Decode,
            is_draining: false,
            ejected: None,
            breaker: BreakerState::Closed,
            load,
            page_size: 16,
            pages_total: Pages(64),
            pages_used: 0,
            seats_open: 0,
            prefill_tokens_pending: 0,
        };
        let pages = worker(&status, None).pages;
        [
            pages.total,
            pages.free,
            pages.owned,
            pages.cached,
            pages.fenced,
        ]
    }

    #[test]
    fn the_books_are_closed_before_and_with_the_first_report() {
        assert_eq!(pages_of(WorkerLoad::default()), [64, 64, 0, 0, 0]);
        let full = WorkerLoad {
            pages_owned: Pages(64),
            ..WorkerLoad::default()
        };
        assert_eq!(pages_of(full), [64, 0, 64, 0, 0]);
    }
}
