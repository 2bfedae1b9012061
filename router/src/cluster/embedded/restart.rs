//! When a worker that died is started again, and when no more.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Exit code of a worker that would fail again: usage, settings, model, refused for good.
pub(super) const EXIT_FOR_GOOD: i32 = 2;

/// Bounds on restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Wait before the first restart; doubles with each death.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// Deaths within `window` after which the worker is given up.
    pub deaths_max: usize,
    /// See `deaths_max`. A life longer than this starts the back-off anew.
    pub window: Duration,
}

impl Default for RestartPolicy {
    /// 50 ms hides a single crash from users; five deaths in a minute are no accident.
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            deaths_max: 5,
            window: Duration::from_secs(60),
        }
    }
}

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start it again after this time.
    Restart(Duration),
    /// It died too often.
    TooOften,
    /// Its exit code says that it would fail again.
    ForGood,
}

/// The deaths of one worker.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: RestartPolicy,
    /// Within the window, oldest first; at most `deaths_max`.
    deaths: VecDeque<Instant>,
}

impl Restarts {
    /// None so far.
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            deaths: VecDeque::new(),
        }
    }

    /// Judges a death at `now`; `code` is the exit code, `None` for a signal.
    pub(super) fn died(&mut self, now: Instant, code: Option<i32>) -> Verdict {
        if code == Some(EXIT_FOR_GOOD) {
            return Verdict::ForGood;
        }
        let window = self.policy.window;
        while self
            .deaths
            .front()
            .is_some_and(|death| now.duration_since(*death) >= window)
        {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        if self.deaths.len() >= self.policy.deaths_max {
            return Verdict::TooOften;
        }
        let doublings = u32::try_from(self.deaths.len() - 1)
            .unwrap_or(u32::MAX)
            .min(16);
        let backoff = self.policy.backoff_min.saturating_mul(1 << doublings);
        Verdict::Restart(backoff.min(self.policy.backoff_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_until_the_worker_is_given_up() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let start = Instant::now();
        let verdicts: Vec<Verdict> = (0..5)
            .map(|i| restarts.died(start + Duration::from_secs(i), Some(1)))
            .collect();
        let waits = [50, 100, 200, 400].map(|ms| Verdict::Restart(Duration::from_millis(ms)));
        assert_eq!(verdicts[..4], waits);
        assert_eq!(verdicts[4], Verdict::TooOften);
    }

    #[test]
    fn old_deaths_are_forgotten() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let start = Instant::now();
        for i in 0..50 {
            let verdict = restarts.died(start + Duration::from_secs(61 * i), None);
            assert_eq!(
                verdict,
                Verdict::Restart(Duration::from_millis(50)),
                "death {i}"
            );
        }
    }

    #[test]
    fn backoff_has_a_ceiling() {
        let policy = RestartPolicy {
            deaths_max: 100,
            ..RestartPolicy::default()
        };
        let mut restarts = Restarts::new(policy);
        let now = Instant::now();
        let last = (0..60).map(|_| restarts.died(now, Some(1))).last();
        assert_eq!(last, Some(Verdict::Restart(policy.backoff_max)));
    }

    #[test]
    fn a_usage_error_is_for_good() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        assert_eq!(
            restarts.died(Instant::now(), Some(EXIT_FOR_GOOD)),
            Verdict::ForGood
        );
    }
}
