//! All answers that have a reader, so that one sweep a second can look after those that nobody
//! polls: a timer for each would cost every stream memory and every token a reset.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use slab::Slab;

use super::outbox::Outbox;

/// Least time between two sweeps; every front thread asks for one as often.
const SWEEP_INTERVAL: Duration = Duration::from_millis(900);

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Live {
    answers: Mutex<Slab<Weak<Outbox>>>,
    swept: Mutex<Option<Instant>>,
}

/// An answer's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    live: Arc<Live>,
    key: usize,
}

impl Live {
    /// Remembers `outbox` for as long as the returned place lives.
    pub(super) fn add(self: &Arc<Self>, outbox: &Arc<Outbox>) -> Place {
        Place {
            key: self.answers.lock().insert(Arc::downgrade(outbox)),
            live: Arc::clone(self),
        }
    }

    /// Looks after every answer, unless another thread has just done so.
    pub(super) fn sweep(&self, now: Instant, patience: Duration) {
        {
            let mut swept = self.swept.lock();
            if swept.is_some_and(|at| now.saturating_duration_since(at) < SWEEP_INTERVAL) {
                return;
            }
            *swept = Some(now);
        }
        // Out of the lock: waking a reader may end in dropping its place.
        let answers: Vec<Arc<Outbox>> = {
            let answers = self.answers.lock();
            answers
                .iter()
                .filter_map(|(_, weak)| weak.upgrade())
                .collect()
        };
        for outbox in answers {
            outbox.look_after(now, patience);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.answers.lock().try_remove(self.key);
    }
}
