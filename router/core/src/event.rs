//! What can happen: the only way in which the brain learns anything.

use serde::{Deserialize, Serialize};

use crate::{
    fleet::{Role, WorkerFacts, WorkerLoad},
    ids::{RequestId, SequenceId, SessionId, SlotId},
    request::RequestFacts,
    units::{Micros, Tokens},
};

/// One input of the brain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A validated request arrived.
    RequestArrived(RequestFacts),
    /// The client went away or the router gave the request up. All its sequences end.
    RequestCancelled {
        /// Which.
        request: RequestId,
    },
    /// The answer of one sequence is complete at the router (a stop string matched, say) although
    /// its seat goes on.
    SequenceStopped {
        /// Which.
        sequence: SequenceId,
    },
    /// A worker attached; its session begins.
    WorkerJoined {
        /// Never seen before.
        session: SessionId,
        /// What it is.
        worker: Box<WorkerFacts>,
    },
    /// A worker's stream is gone or its lease is over: every seat of it is gone.
    SessionLost {
        /// Which.
        session: SessionId,
    },
    /// The router ended a session because its worker broke the protocol: every seat is gone, but
    /// nobody died.
    SessionBroken {
        /// Which.
        session: SessionId,
    },
    /// A worker is ejected: no new work, and its sequences go on elsewhere at once. It is back with
    /// its next report that is not [`StepReport::is_stuck`].
    WorkerSuspected {
        /// Which.
        session: SessionId,
        /// What it did.
        why: Suspicion,
    },
    /// A worker finished a step, or had something to say while idle.
    StepReported(Box<StepReport>),
    /// A running sequence is to go on at another worker.
    MoveRequested {
        /// Which.
        sequence: SequenceId,
        /// Where to.
        to: SessionId,
    },
    /// No new request is taken from now on.
    DrainStarted,
    /// The time that `next_wake` named has come.
    Woke,
}

/// Why a worker is ejected although its stream is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspicion {
    /// It missed reports, or does not hear us: the process is frozen or the network is.
    Silent,
    /// It reports, but its engine step does not end.
    Stuck,
}

/// What one report changed. The brain handles it in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Whose.
    pub session: SessionId,
    /// Its label as the worker sees it.
    pub role: Role,
    /// Greatest role epoch that it obeyed.
    pub role_epoch: u64,
    /// It refuses every Open.
    pub draining: bool,
    /// The front's watchdog still waits for the step, or the answer, that it was suspected for: an
    /// ejected worker is not back with this report.
    #[serde(default)]
    pub is_stuck: bool,
    /// Its load after the step.
    pub load: WorkerLoad,
    /// Import seats that were reserved; their grants wait in dispatch.
    pub opened: Vec<SlotId>,
    /// Import seats whose KV is complete, with the answer tokens made so far.
    pub arrived: Vec<(SlotId, Tokens)>,
    /// Seats that made tokens, with how many.
    pub tokens: Vec<(SlotId, Tokens)>,
    /// Seats that ended.
    pub closed: Vec<ClosedSeat>,
    /// Seats that began with pages of the prefix cache, with the tokens that these hold. For those
    /// who count them, routers and simulators; the brain does not look.
    #[serde(default)]
    pub reused: Vec<(SlotId, Tokens)>,
    /// Prefixes that the worker keeps from now on, as in [`crate::request::PrefixMark`].
    #[serde(default)]
    pub stored: Vec<u64>,
    /// Prefixes that it keeps no longer.
    #[serde(default)]
    pub evicted: Vec<u64>,
}

impl StepReport {
    /// Of a worker to which nothing happened.
    pub fn new(session: SessionId, role: Role) -> Self {
        Self {
            session,
            role,
            role_epoch: 0,
            draining: false,
            is_stuck: false,
            load: WorkerLoad::default(),
            opened: Vec::new(),
            arrived: Vec::new(),
            tokens: Vec::new(),
            closed: Vec::new(),
            reused: Vec::new(),
            stored: Vec::new(),
            evicted: Vec::new(),
        }
    }
}

/// The end of a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedSeat {
    /// Which.
    pub slot: SlotId,
    /// Why.
    pub why: CloseReason,
    /// When it is worth trying again, if refused.
    pub retry_after: Micros,
}

/// Why a seat ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Finished at a stop.
    Stop,
    /// Finished at its limit.
    Length,
    /// The router asked.
    Asked,
    /// The Open was not accepted.
    Refused,
    /// The hand-off into it failed.
    Lost,
    /// Its pages were needed.
    Preempted,
    /// The engine failed under it alone.
    Error,
}
