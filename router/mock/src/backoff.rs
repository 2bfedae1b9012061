//! Waits between tries: 50 ms doubling to 1 s, with jitter, so that a fleet does not come back in
//! one moment.

use std::time::Duration;

use crate::model::mix;

/// First wait.
const WAIT_MIN: Duration = Duration::from_millis(50);
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Doubling waits.
#[derive(Debug)]
pub(crate) struct Backoff {
    tries: u32,
    seed: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// Starts over.
    pub(crate) fn new() -> Self {
        Self {
            tries: 0,
            // Without entropy the waits are not spread, which is no error.
            seed: getrandom::u64().unwrap_or(0),
        }
    }

    /// The next wait.
    pub(crate) fn next_wait(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        wait(self.tries, mix(self.seed ^ u64::from(self.tries)))
    }
}

/// Wait before try `tries` + 1: between half and all of the doubled time. 0 tries: none.
pub fn wait(tries: u32, random: u64) -> Duration {
    let Some(doublings) = tries.checked_sub(1) else {
        return Duration::ZERO;
    };
    let full = WAIT_MIN.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
    let full = full.min(WAIT_MAX);
    full / 2 + full.mul_f64((random >> 11) as f64 / (1_u64 << 54) as f64)
}
