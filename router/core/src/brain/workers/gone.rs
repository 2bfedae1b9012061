//! What is remembered of a worker that went, under its name, until it is back or nothing of it
//! matters any more.

use super::{Worker, Workers};
use crate::{
    brain::{breaker::Breaker, config::BrainConfig},
    fleet::WorkerFacts,
    units::Micros,
};

/// Names that are remembered; of more, those that matter least are not.
const NAMES_MAX: usize = 1_024;

#[derive(Debug)]
pub(super) struct Gone {
    breaker: Breaker,
    incarnation: u64,
    /// Number of its death, if it was one.
    incident: Option<u64>,
}

impl Workers {
    /// Keeps what matters of a worker that went.
    pub(in crate::brain) fn remember(
        &mut self,
        worker: Worker,
        incident: Option<u64>,
        now: Micros,
        config: &BrainConfig,
    ) {
        let Worker {
            facts, mut breaker, ..
        } = worker;
        if breaker.is_quiet(now, config) {
            return;
        }
        if self.gone.len() >= NAMES_MAX {
            self.gone
                .retain(|_, gone| !gone.breaker.is_quiet(now, config));
        }
        if self.gone.len() < NAMES_MAX {
            let gone = Gone {
                breaker,
                incarnation: facts.incarnation,
                incident,
            };
            self.gone.insert(facts.name, gone);
        }
    }

    /// The breaker that a worker had, and the number of its death if it was none: the same process
    /// is back, so only its stream broke.
    pub(super) fn recall(&mut self, facts: &WorkerFacts) -> (Breaker, Option<u64>) {
        let Some(gone) = self.gone.remove(&facts.name) else {
            return (Breaker::new(), None);
        };
        let is_same = gone.incarnation == facts.incarnation && facts.incarnation != 0;
        (gone.breaker, gone.incident.filter(|_| is_same))
    }
}
