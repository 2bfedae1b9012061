//! The table "Request at the router" of the hand-off's design, cell by cell. `-` is
//! [`Cell::Ignore`], `!` is [`Cell::Break`]. A decision only: `act` carries it out.
//!
//! *cur* is the seat whose tokens count, *nxt* the import seat.

use super::place::Place;
use crate::{
    action::Violation,
    event::{CloseReason, Suspicion},
    request::RejectReason,
    units::Tokens,
};

/// Column. END has none: an ended sequence is not known any more, so nothing reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PhaseKind {
    /// In the queue.
    Wait,
    /// nxt is opening, cur is planned.
    Placing,
    /// At cur.
    Run,
    /// At cur; nxt is opening.
    Moving,
    /// At cur, which was told to send to nxt.
    Shipping,
}

/// Row, with what the cells need of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// The brain found a place.
    Place(Place),
    /// The brain found another worker (its key) for a running sequence.
    MoveTo(usize),
    /// nxt was reserved; its grant is there.
    Opened,
    /// cur made tokens.
    TokensCurrent(Tokens),
    /// Another seat of it made tokens.
    TokensOther,
    /// nxt is complete, so many answer tokens made.
    Arrived(Tokens),
    /// cur made the last token.
    Finished,
    /// cur ended otherwise.
    ClosedCurrent(CloseReason),
    /// nxt ended.
    ClosedNext,
    /// The session of cur is over, or its worker is ejected.
    LostCurrent(Loss),
    /// The session of nxt is over, or its worker is ejected.
    LostNext,
    /// The worker of cur takes no new seats from now on.
    DrainsCurrent,
    /// The worker of nxt takes no new seats from now on.
    DrainsNext,
    /// The hand-off took too long.
    HandoffTimer,
    /// The client went, or the answer is complete at the router.
    Cancel,
    /// The client stops waiting.
    Deadline,
    /// No worker could take it for too long.
    NoWorker,
}

/// Why a worker computes nothing for anybody any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is gone.
    Died,
    /// The router ended its session, because it broke the protocol.
    Broken,
    /// It left as it was told to.
    Left,
    /// It is ejected, its session goes on.
    Ejected(Suspicion),
}

/// Why a sequence is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its seat ended.
    Closed(CloseReason),
    /// Its worker went.
    Lost(Loss),
}

impl Fault {
    /// Its word in metrics.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Lost(Loss::Died) => "worker_died",
            Self::Lost(Loss::Broken) => "worker_broken",
            Self::Lost(Loss::Left) => "worker_left",
            Self::Lost(Loss::Ejected(Suspicion::Silent)) => "worker_silent",
            Self::Lost(Loss::Ejected(Suspicion::Stuck)) => "worker_stuck",
            Self::Closed(CloseReason::Refused) => "refused",
            Self::Closed(CloseReason::Preempted) => "preempted",
            Self::Closed(CloseReason::Lost) => "lost",
            Self::Closed(CloseReason::Asked) => "asked",
            Self::Closed(CloseReason::Error) => "error",
            Self::Closed(CloseReason::Stop | CloseReason::Length) => "finished",
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Harmless.
    Ignore,
    /// Protocol error: end the session that said so.
    Break(Violation),
    /// Open cur there; RUN.
    OpenCurrent(usize),
    /// Open nxt, plan cur; PLACING.
    OpenNextPlanCurrent {
        /// Worker of nxt.
        decode: usize,
        /// Worker of cur.
        prefill: usize,
    },
    /// Open nxt there; MOVING.
    OpenNext(usize),
    /// Open cur, tell it to send; SHIPPING.
    OpenCurrentAndSend,
    /// Tell cur to send; SHIPPING.
    Send,
    /// The tokens are the client's.
    Deliver(Tokens),
    /// Close cur; nxt is cur; RUN.
    Switch(Tokens),
    /// Answered. nxt, if any, is not needed; END.
    Finish,
    /// Close what is left; WAIT, at the front.
    Replay(Fault),
    /// One of both is gone: close nxt, free the plan; WAIT.
    GiveUpPlace,
    /// Close nxt, of which cur never heard; RUN.
    CloseNext,
    /// Close nxt, tell cur to stay; RUN.
    GiveUpNext,
    /// Close all; END, with an error or without.
    End(Option<RejectReason>),
}

/// The cell.
#[expect(
    clippy::match_same_arms,
    reason = "one block a row, as in the design's table"
)]
pub(super) const fn cell(input: Input, phase: PhaseKind) -> Cell {
    use self::{
        Cell as C,
        PhaseKind::{Moving, Placing, Run, Shipping, Wait},
    };
    match (input, phase) {
        (Input::Place(Place::Keep(worker) | Place::Begin(worker, _)), Wait) => {
            C::OpenCurrent(worker)
        }
        (Input::Place(Place::Pair { prefill, decode }), Wait) => {
            C::OpenNextPlanCurrent { decode, prefill }
        }
        (Input::MoveTo(worker), Run) => C::OpenNext(worker),
        (Input::Place(_) | Input::MoveTo(_), _) => C::Ignore,

        (Input::Opened, Placing) => C::OpenCurrentAndSend,
        (Input::Opened, Moving) => C::Send,
        (Input::Opened, Shipping) => C::Break(Violation::OpenedTwice),
        (Input::Opened, Wait | Run) => C::Ignore,

        (Input::TokensCurrent(tokens), Run | Moving | Shipping) => C::Deliver(tokens),
        (Input::TokensCurrent(_), Wait | Placing) => C::Ignore,
        (Input::TokensOther, _) => C::Ignore,

        (Input::Arrived(pos), Shipping) => C::Switch(pos),
        (Input::Arrived(_), Placing | Moving) => C::Break(Violation::ArrivedUnsent),
        (Input::Arrived(_), Wait | Run) => C::Ignore,

        (Input::Finished, Run | Moving | Shipping) => C::Finish,
        (Input::ClosedCurrent(why), Run | Moving | Shipping) => C::Replay(Fault::Closed(why)),
        (Input::Finished | Input::ClosedCurrent(_), Placing) => C::Break(Violation::NoSuchSeat),
        (Input::Finished | Input::ClosedCurrent(_), Wait) => C::Ignore,

        // What is gone already needs no Close, and none is sent.
        (Input::ClosedNext | Input::LostNext, Placing) => C::GiveUpPlace,
        (Input::ClosedNext | Input::LostNext, Moving) => C::CloseNext,
        (Input::ClosedNext | Input::LostNext, Shipping) => C::GiveUpNext,
        (Input::ClosedNext | Input::LostNext, Wait | Run) => C::Ignore,

        (Input::LostCurrent(_), Placing) => C::GiveUpPlace,
        (Input::LostCurrent(loss), Run | Moving | Shipping) => C::Replay(Fault::Lost(loss)),
        (Input::LostCurrent(_), Wait) => C::Ignore,

        (Input::DrainsCurrent | Input::DrainsNext, Placing) => C::GiveUpPlace,
        (Input::DrainsNext, Moving) => C::CloseNext,
        (Input::DrainsCurrent | Input::DrainsNext, _) => C::Ignore,

        (Input::HandoffTimer, Shipping) => C::GiveUpNext,
        (Input::HandoffTimer, Wait | Placing | Run | Moving) => C::Ignore,

        (Input::Cancel, _) => C::End(None),
        (Input::Deadline, _) => C::End(Some(RejectReason::DeadlineExceeded)),
        (Input::NoWorker, Wait) => C::End(Some(RejectReason::NoWorker)),
        (Input::NoWorker, _) => C::Ignore,
    }
}

#[cfg(test)]
mod tests;
