//! What the brain wants done. Whoever drives it carries these out, in order.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{SeatId, SequenceId, SessionId},
    request::{MissedTarget, RejectReason},
    units::{Micros, Pages},
};

/// One output of the brain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Make a seat. `Compute` seats become the sequence's current seat at once: tokens of any other
    /// seat are dropped.
    Open {
        /// Where.
        seat: SeatId,
        /// For whom.
        sequence: SequenceId,
        /// Pages to reserve.
        pages: Pages,
        /// What kind.
        kind: OpenKind,
    },
    /// Tell the seat to ship to the grant of `to`, or to stay and go on.
    Send {
        /// The source.
        seat: SeatId,
        /// The import seat whose grant to relay; `None`: stay.
        to: Option<SeatId>,
    },
    /// Close a seat.
    Close {
        /// Which.
        seat: SeatId,
    },
    /// The import seat arrived and is the sequence's current seat from now on: add its tail, then
    /// take its tokens.
    Switch {
        /// Whose.
        sequence: SequenceId,
        /// The new current seat.
        seat: SeatId,
    },
    /// The sequence ends with an error. Its seats are closed by separate actions.
    Reject {
        /// Which.
        sequence: SequenceId,
        /// Why.
        why: RejectReason,
        /// When a retry makes sense; zero: no hint.
        retry_after: Micros,
        /// Of `Late` and `Unmeetable`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missed: Option<MissedTarget>,
    },
    /// The worker broke the protocol: end its stream. To the brain the session is over already.
    Break {
        /// Whose.
        session: SessionId,
        /// What it did.
        why: Violation,
    },
}

/// How a worker broke the protocol: the cells `!` of the hand-off's state tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Violation {
    /// It spoke of a seat that was never opened, or is closed already.
    NoSuchSeat,
    /// It granted the same import seat twice.
    OpenedTwice,
    /// An import seat was complete before its source was told to send.
    ArrivedUnsent,
    /// An import seat holds fewer answer tokens than were delivered, or more than the limit.
    WrongPosition,
    /// A seat made more tokens than the limit.
    TooManyTokens,
}

/// Kind of a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenKind {
    /// Compute prompt and answer so far, then go on.
    Compute,
    /// Wait for the KV from another worker.
    Import,
}
