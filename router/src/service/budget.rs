//! Bytes of request bodies that are in preparation: received, not yet running.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::error::{Error, Reason};

/// Hint for a client that met a full budget: preparing a body takes less than that as a rule.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// What all requests in preparation may take together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

/// What one request in preparation takes; given back when dropped.
#[derive(Debug)]
pub struct Preparing {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            max,
        })
    }

    /// A request that has taken nothing yet.
    pub(super) fn begin(self: &Arc<Self>) -> Preparing {
        Preparing {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }
}

impl Preparing {
    /// Refuses a body of `bytes` that could not be taken now; takes nothing: a client must send
    /// what it announces before others have less.
    pub fn announce(&self, bytes: usize) -> Result<(), Error> {
        let used = self.budget.used.load(Ordering::Relaxed);
        if used.saturating_add(bytes) <= self.budget.max {
            return Ok(());
        }
        Err(self.full())
    }

    /// Takes `bytes` more.
    pub fn take(&mut self, bytes: usize) -> Result<(), Error> {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) <= self.budget.max {
            return Ok(());
        }
        Err(self.full())
    }

    fn full(&self) -> Error {
        let message = format!(
            "requests in preparation have {} bytes together, at most; try again",
            self.budget.max
        );
        Error::new(Reason::QueueFull, message).with_retry_after(FULL_RETRY)
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_no_more_than_there_is_is_given() {
        let budget = Budget::new(100);
        let mut first = budget.begin();
        first.take(60).unwrap();
        let mut second = budget.begin();
        second.announce(40).unwrap();
        assert_eq!(second.announce(41).unwrap_err().reason, Reason::QueueFull);
        let refused = second.take(41).unwrap_err();
        assert_eq!(refused.retry_after, Some(FULL_RETRY));
        drop(second);
        first.take(40).unwrap();
        drop(first);
        budget.begin().take(100).unwrap();
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
