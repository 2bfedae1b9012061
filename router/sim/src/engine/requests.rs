//! What the clients see: tokens, ends, where the work was done.

use dopd_core::{fleet::Role, ids::SeatId, units::Micros};

use crate::outcome::{Ending, RequestOutcome};

/// An open seat as the router sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeatView {
    /// Place in the trace.
    pub(super) request: u32,
    pub(super) life: u32,
    /// Answer tokens, since it arrived.
    pub(super) made: Option<u32>,
}

/// A request that is not over.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    cur: Option<SeatId>,
    /// Answer tokens that the client has.
    have: u32,
    /// Times its prompt was begun.
    begun: u16,
    is_over: bool,
}

/// All requests, by their place in the trace.
#[derive(Debug)]
pub(super) struct Requests {
    outcomes: Vec<RequestOutcome>,
    streams: Vec<Stream>,
    /// That came and are not over.
    pub(super) open: usize,
    /// Ends of requests that were over: a defect.
    pub(super) doubled: u64,
}

impl Requests {
    pub(super) fn new(outcomes: Vec<RequestOutcome>) -> Self {
        Self {
            streams: vec![Stream::default(); outcomes.len()],
            outcomes,
            open: 0,
            doubled: 0,
        }
    }

    pub(super) fn target(&self, index: usize) -> Micros {
        let outcome = self.outcomes.get(index);
        outcome.map_or(Micros(0), |outcome| outcome.ttft_target)
    }

    pub(super) fn have(&self, index: usize) -> u32 {
        self.streams.get(index).map_or(0, |stream| stream.have)
    }

    /// It is computed from now on, at a worker with this label.
    pub(super) fn opened(&mut self, index: usize, seat: SeatId, role: Option<Role>) {
        let (Some(stream), Some(outcome)) =
            (self.streams.get_mut(index), self.outcomes.get_mut(index))
        else {
            return;
        };
        stream.cur = Some(seat);
        stream.begun = stream.begun.saturating_add(1);
        outcome.is_stolen = role == Some(Role::Decode);
        outcome.is_kept = role == Some(Role::Prefill);
    }

    /// It goes on at another worker.
    pub(super) fn switched(&mut self, index: usize, seat: SeatId, have: Option<u32>, now: Micros) {
        let (Some(stream), Some(outcome)) =
            (self.streams.get_mut(index), self.outcomes.get_mut(index))
        else {
            return;
        };
        stream.cur = Some(seat);
        stream.have = have.unwrap_or(stream.have).max(stream.have);
        outcome.is_kept = false;
        outcome.first.get_or_insert(now);
    }

    /// A seat made tokens.
    pub(super) fn made(&mut self, request: u32, seat: SeatId, tokens: u32, now: Micros) {
        let index = request as usize;
        let (Some(stream), Some(outcome)) =
            (self.streams.get_mut(index), self.outcomes.get_mut(index))
        else {
            return;
        };
        if stream.cur == Some(seat) && !stream.is_over {
            stream.have += tokens;
            outcome.first.get_or_insert(now);
        }
    }

    pub(super) fn reused(&mut self, request: u32, tokens: u32) {
        if let Some(outcome) = self.outcomes.get_mut(request as usize) {
            outcome.cached_tokens = tokens;
        }
    }

    pub(super) fn preempted(&mut self, request: u32, seat: SeatId) {
        let index = request as usize;
        let is_current = self
            .streams
            .get(index)
            .is_some_and(|stream| stream.cur == Some(seat));
        if let Some(outcome) = self.outcomes.get_mut(index).filter(|_| is_current) {
            outcome.preemptions = outcome.preemptions.saturating_add(1);
        }
    }

    /// A seat made its last token.
    pub(super) fn finished(&mut self, request: u32, seat: SeatId, now: Micros) {
        let index = request as usize;
        let is_current = self
            .streams
            .get(index)
            .is_some_and(|stream| stream.cur == Some(seat));
        if is_current {
            self.over(index, Ending::Finished, now);
        }
    }

    pub(super) fn rejected(&mut self, index: usize, now: Micros) {
        self.over(index, Ending::Rejected, now);
    }

    fn over(&mut self, index: usize, ending: Ending, now: Micros) {
        let (Some(stream), Some(outcome)) =
            (self.streams.get_mut(index), self.outcomes.get_mut(index))
        else {
            return;
        };
        if std::mem::replace(&mut stream.is_over, true) {
            self.doubled += 1;
            return;
        }
        self.open -= 1;
        (outcome.ending, outcome.end) = (ending, Some(now));
        let again = stream.begun.saturating_sub(1);
        outcome.replays = again.saturating_sub(outcome.preemptions);
        outcome.is_kept &= outcome.output_tokens > 1 && ending == Ending::Finished;
    }

    pub(super) fn into_outcomes(self) -> Vec<RequestOutcome> {
        self.outcomes
    }
}
