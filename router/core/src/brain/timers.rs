//! What the brain waits for. A timer is named by what it belongs to, so each exists at most once
//! and can be taken back.

use std::collections::BTreeSet;

use super::pairs::Pair;
use crate::{ids::RequestId, units::Micros};

/// What is due. Keys are those of the slabs that own sequences and workers; a timer is cleared
/// before its key is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A worker that refused may be asked again.
    Backoff(usize),
    /// Since then no worker could take anything.
    NoWorker,
    /// The breaker of a worker.
    Breaker(usize),
    /// The breaker of a pair.
    Pair(Pair),
    /// Deaths of workers that come together have come.
    Settled,
    /// A sequence that came while there was no worker has waited long enough.
    Waited(usize),
    /// A sequence that waits missed its target long ago.
    Late(usize),
    /// A hand-off takes too long.
    Handoff(usize),
    /// The client stops waiting.
    Deadline(RequestId),
}

/// What one event does at most of what time has made due: timers, and of those that wait in vain
/// each. Deadlines of thousands at one instant are no long event then.
pub(super) const DUE_MAX: usize = 16;

const NEVER: Micros = Micros(u64::MAX);

#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Micros, Timer)>);

impl Timers {
    /// The end of time never comes: nothing is kept for it.
    pub(super) fn set(&mut self, at: Micros, timer: Timer) {
        if at != NEVER {
            self.0.insert((at, timer));
        }
    }

    pub(super) fn clear(&mut self, at: Micros, timer: Timer) {
        if at != NEVER {
            self.0.remove(&(at, timer));
        }
    }

    /// The timer is due at another time, or no longer.
    pub(super) fn change(&mut self, before: Option<Micros>, after: Option<Micros>, timer: Timer) {
        if before == after {
            return;
        }
        if let Some(at) = before {
            self.clear(at, timer);
        }
        if let Some(at) = after {
            self.set(at, timer);
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Micros> {
        self.0.first().map(|&(at, _)| at)
    }

    /// Takes the earliest that is due at `now`, with its time.
    pub(super) fn pop_due(&mut self, now: Micros) -> Option<(Micros, Timer)> {
        self.next().filter(|&at| at <= now)?;
        self.0.pop_first()
    }
}
