//! What threads tell each other.
//!
//! ```text
//! brain -> owner of the stream -> home of the worker      SeatOrder, then LinkCommand
//! home of the worker -> owner of the stream               Batch
//! front -> brain                                          BrainInput
//! ```

use std::sync::Arc;

use dopd_core::{
    action::OpenKind,
    brain::Explanation,
    event::Suspicion,
    event::{CloseReason, StepReport},
    fleet::WorkerFacts,
    ids::{RequestId, SequenceId, SessionId, SlotId},
    request::RequestFacts,
    units::Pages,
};
use tokio::sync::oneshot;

use crate::{
    error::Error,
    status::{FleetStatus, LinkStatus},
    streams::{
        key::{Life, StreamKey},
        sink::TokenLogprobs,
    },
    wire::worker::{Grant, Open},
};

/// One message to a front thread.
#[derive(Debug)]
pub enum FrontMessage {
    /// The brain's decision on a seat, to the owner of its stream.
    Seat(SeatOrder),
    /// The sequence ends with an error.
    Fail {
        /// Which.
        sequence: SequenceId,
        /// Why.
        error: Error,
    },
    /// To the home of a worker.
    Link {
        /// Whose link.
        session: SessionId,
        /// What to do.
        command: LinkCommand,
    },
    /// The worker broke the protocol: end its stream.
    Break(SessionId),
    /// What one report brought for the streams of this thread.
    Batch(Box<Batch>),
}

/// A decision on a seat as the brain's thread sends it to the owner of the stream.
#[derive(Debug)]
pub struct SeatOrder {
    /// For whom.
    pub sequence: SequenceId,
    /// At whose session.
    pub session: SessionId,
    /// Which seat of it.
    pub slot: SlotId,
    /// Front thread that holds the session's link.
    pub home: u16,
    /// Name of the session's worker.
    pub worker: Arc<str>,
    /// What to do.
    pub order: Order,
}

/// What the brain wants of a seat.
#[derive(Debug)]
pub enum Order {
    /// Make it.
    Open {
        /// Pages to reserve.
        pages: Pages,
        /// What kind.
        kind: OpenKind,
    },
    /// Ship to the holder of the grant, or stay.
    Send(Option<Grant>),
    /// Close it.
    Close,
    /// It is the current seat from now on.
    Switch,
}

/// A command for one slot of a link, in the order in which it leaves for the worker.
#[derive(Debug)]
pub struct LinkCommand {
    /// Which slot.
    pub slot: SlotId,
    /// Whose seat it must be: the slot may have been given to another sequence meanwhile.
    pub sequence: SequenceId,
    /// What to do.
    pub kind: LinkOrder,
}

/// What to do with a slot.
#[derive(Debug)]
pub enum LinkOrder {
    /// Send this Open.
    Open {
        /// The message.
        open: Box<Open>,
        /// Where its tokens go.
        key: StreamKey,
        /// As which seat.
        life: Life,
    },
    /// The stream is gone: tell the brain that the seat was closed, and the worker nothing.
    Void,
    /// Send to the grant's holder, or stay.
    Send(Option<Grant>),
    /// Close.
    Close,
    /// Pass on what was kept since the seat arrived, and from now on everything.
    Switch,
}

/// What one report brought for the streams of one front thread, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// One entry per seat and kind.
    pub rows: Vec<BatchRow>,
    /// Tokens of all rows, one after another.
    pub tokens: Vec<u32>,
    /// Log probabilities of all rows that have them, one after another.
    pub logprobs: Vec<TokenLogprobs>,
}

/// One row of a [`Batch`].
#[derive(Debug)]
pub struct BatchRow {
    /// For which stream.
    pub key: StreamKey,
    /// Of which seat.
    pub life: Life,
    /// Tokens of this row.
    pub tokens: u32,
    /// Log probabilities of this row: 0 or one per token (flush: one per token past the tail;
    /// prompt: one per position).
    pub logprobs: u32,
    /// What happened.
    pub kind: RowKind,
}

/// What a row of a [`Batch`] is about.
#[derive(Debug)]
pub enum RowKind {
    /// New tokens.
    Tokens,
    /// Log probabilities of the prompt's tokens from this position on; no tokens.
    Prompt {
        /// Position of the first.
        start: u32,
    },
    /// Prompt tokens that its seat found in the worker's cache.
    Reused {
        /// How many.
        tokens: u32,
    },
    /// Answer to a Switch: the tail and all tokens since the seat arrived.
    Flush(Flush),
    /// The seat ended.
    Closed(Ended),
}

/// Where the tokens of a flush stand in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Position of the first token in the answer.
    pub have: u32,
    /// How many of the tokens are the tail, which has no log probabilities.
    pub tail: u32,
    /// The seat finished meanwhile.
    pub finished: Option<CloseReason>,
    /// The session ended after the seat had finished: sent without being asked for.
    pub is_legacy: bool,
}

/// The end of a seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub why: CloseReason,
    /// What the worker said.
    pub note: Option<Box<str>>,
}

/// One message to the brain's thread.
#[derive(Debug)]
pub enum BrainInput {
    /// A request was submitted; its streams exist.
    Submitted(RequestFacts),
    /// Its ticket was dropped.
    Cancelled(RequestId),
    /// The answer is complete at the router, or its stream is gone.
    Stopped(SequenceId),
    /// A worker attached.
    Joined(Box<Joined>),
    /// A session ended.
    Lost(SessionId),
    /// It ended because its worker broke the protocol.
    Broken(SessionId),
    /// A session is silent.
    Suspected(SessionId, Suspicion),
    /// A worker reported.
    Reported(Box<Reported>),
    /// Somebody wants to know how the fleet is.
    Status(oneshot::Sender<FleetStatus>),
    /// Why a request went where it went; without one, the newest so many decisions.
    Explain(Vec<RequestId>, usize, oneshot::Sender<Explanation>),
}

/// An attached worker.
#[derive(Debug)]
pub struct Joined {
    /// Its session.
    pub session: SessionId,
    /// Front thread that holds its link.
    pub home: u16,
    /// For the brain.
    pub facts: WorkerFacts,
    /// Process id on its host.
    pub pid: u32,
    /// Device.
    pub device: String,
    /// Where its data link listens.
    pub address: String,
}

/// A report without its tokens.
#[derive(Debug)]
pub struct Reported {
    /// For the brain.
    pub report: StepReport,
    /// Grants of `report.opened`, in its order.
    pub grants: Vec<Grant>,
    /// Its data links, if it told them anew.
    pub links: Option<Vec<LinkStatus>>,
}
