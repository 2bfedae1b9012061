//! A view of the brain for people and metrics; made on demand, not on the path of any event.

use std::collections::BTreeMap;

use super::{Brain, sequences::Sequence, workers::Worker};
use crate::{
    event::Suspicion,
    fleet::{Role, WorkerLoad},
    ids::SessionId,
    units::Pages,
};

/// The brain at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrainStatus {
    /// Requests of which at least one sequence waits.
    pub requests_waiting: usize,
    /// Tokens to compute of the sequences that wait.
    pub tokens_waiting: u64,
    /// Sequences that do not wait.
    pub sequences_running: usize,
    /// Sequences with an import seat that has not arrived.
    pub handoffs_running: usize,
    /// Prompts that workers labelled decode took from the queue, for want of faster ones.
    pub stolen_total: u64,
    /// Hand-offs that arrived.
    pub handoffs_total: u64,
    /// Times a sequence was computed again.
    pub replays_total: u64,
    /// Times a sequence was placed again, by reason; `refused` is no replay.
    pub replays_by: BTreeMap<&'static str, u64>,
    /// Tokens that were, or will be, computed again for them.
    pub replay_tokens_total: u64,
    /// Times a worker was ejected, by reason: `silent` or `stuck`.
    pub ejections_by: BTreeMap<&'static str, u64>,
    /// Requests rejected because two workers died under them.
    pub poison_total: u64,
    /// Sequences rejected in the queue because their answer could not have been complete in time.
    pub hopeless_total: u64,
    /// Sequences refused because they waited long after the target that was asked for.
    pub late_total: u64,
    /// Sequences that made room in a full queue, for other tenants or for who was in time.
    pub evicted_total: u64,
    /// Tenants of which a count is kept.
    pub tenants: usize,
    /// Times a sequence that waits stepped behind those that can still meet their target.
    pub demotions_total: u64,
    /// Sequences that were computed again, have made no token since, and run.
    pub retries_running: usize,
    /// Pairs of workers between which hand-offs are not tried for a while.
    pub pairs_open: usize,
    /// Times a breaker opened: `worker` or `pair`.
    pub breaker_openings_by: BTreeMap<&'static str, u64>,
    /// Sessions ended because their worker broke the protocol.
    pub violations_total: u64,
    /// Attached workers, in the order in which they attached.
    pub sessions: Vec<SessionStatus>,
}

/// What a breaker does about a worker or a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// Nothing: it works.
    #[default]
    Closed,
    /// No new work for a while.
    Open,
    /// One sequence at a time, to see whether it works again.
    HalfOpen,
}

/// One attached worker as the brain sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionStatus {
    /// Its session.
    pub session: SessionId,
    /// Its name.
    pub name: String,
    /// Its label.
    pub role: Role,
    /// It refuses new seats.
    pub is_draining: bool,
    /// It is ejected, and why: no new work, its sequences went on elsewhere.
    pub ejected: Option<Suspicion>,
    /// What its failures of late lead to.
    pub breaker: BreakerState,
    /// As last reported.
    pub load: WorkerLoad,
    /// Tokens per page.
    pub page_size: u32,
    /// Size of its pool.
    pub pages_total: Pages,
    /// Pages promised in the brain's account, from the plan until `closed` was read: to those that
    /// grow, what they need at the worst time.
    pub pages_used: u64,
    /// Seats in the account.
    pub seats_open: u32,
    /// Prompt tokens before it.
    pub prefill_tokens_pending: u64,
}

impl Brain {
    /// The brain at this instant.
    pub fn status(&self) -> BrainStatus {
        let has_next = |sequence: &&Sequence| sequence.phase.nxt().is_some();
        BrainStatus {
            requests_waiting: self.sequences.requests_waiting(),
            tokens_waiting: self.queue.tokens(),
            sequences_running: self.sequences.len() - self.queue.len(),
            handoffs_running: self.sequences.iter().filter(has_next).count(),
            stolen_total: self.stolen_total,
            handoffs_total: self.handoffs_total,
            replays_total: self.replays_total,
            replays_by: self.replays_by.clone(),
            replay_tokens_total: self.replay_tokens_total,
            ejections_by: self.ejections_by.clone(),
            poison_total: self.poison_total,
            hopeless_total: self.hopeless_total,
            late_total: self.late_total,
            evicted_total: self.evicted_total,
            tenants: self.queue.share.len(),
            demotions_total: self.demotions_total,
            retries_running: self.retries_running,
            pairs_open: self.pairs.open(),
            breaker_openings_by: self.breaker_openings_by.clone(),
            violations_total: self.violations_total,
            sessions: self.workers.iter().map(session_status).collect(),
        }
    }

    /// A worker that can take a request is attached.
    pub fn is_ready(&self) -> bool {
        self.workers.is_any_usable()
    }
}

fn session_status(worker: &Worker) -> SessionStatus {
    SessionStatus {
        session: worker.session,
        name: worker.facts.name.clone(),
        role: worker.role,
        is_draining: worker.is_draining,
        ejected: worker.ejected,
        breaker: worker.breaker.state(),
        load: worker.load,
        page_size: worker.facts.page_size,
        pages_total: worker.facts.pages_total,
        pages_used: worker.slots.pages_used(),
        seats_open: worker.slots.seats_used(),
        prefill_tokens_pending: worker.prefill_pending(),
    }
}
