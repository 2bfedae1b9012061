//! A bound on log lines of one kind.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Where seconds are counted from; any moment does.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Lets so many lines of each second pass and counts the others. Without a lock: two threads at the
/// turn of a second may let one line more pass.
#[derive(Debug)]
pub struct Gate {
    per_second: u64,
    /// The second, counted from 1, that `passed` belongs to.
    second: AtomicU64,
    passed: AtomicU64,
    held: AtomicU64,
}

impl Gate {
    /// Lets `per_second` lines pass.
    pub const fn new(per_second: u64) -> Self {
        Self {
            per_second,
            second: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// Some: write the line, and say that so many were held since the last that passed. None: do
    /// not.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let second = now.saturating_duration_since(*START).as_secs() + 1;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.passed.store(0, Ordering::Relaxed);
        }
        if self.passed.fetch_add(1, Ordering::Relaxed) < self.per_second {
            return Some(self.held.swap(0, Ordering::Relaxed));
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn holds_what_is_over_the_rate_and_tells_of_it() {
        let gate = Gate::new(2);
        let start = *START + Duration::from_secs(5);
        let passed: Vec<Option<u64>> = (0..5).map(|_| gate.admit(start)).collect();
        assert_eq!(passed, [Some(0), Some(0), None, None, None]);
        let later = start + Duration::from_secs(1);
        assert_eq!(gate.admit(later), Some(3));
        assert_eq!(gate.admit(later), Some(0));
    }
}
