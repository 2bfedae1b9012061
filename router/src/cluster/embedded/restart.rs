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
    /// Wait after a first death.
    pub first: Duration,
    /// Wait after the second within the window; doubles with each further one.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// Deaths within `window` after which the worker is given up.
    pub deaths_max: usize,
    /// See `deaths_max`. A life longer than this starts the back-off anew.
    pub window: Duration,
    /// A life of this length that ends with exit code 0 was ended by somebody: that is no death.
    pub stay: Duration,
}

impl Default for RestartPolicy {
    /// 50 ms hides a single crash from users; five deaths in ten minutes are no accident.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            deaths_max: 5,
            window: Duration::from_secs(600),
            stay: Duration::from_secs(10),
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

    /// Judges the end at `now` of a life that began at `since`; `code` is the exit code, `None` for
    /// a signal.
    pub(super) fn died(&mut self, now: Instant, since: Instant, code: Option<i32>) -> Verdict {
        if code == Some(EXIT_FOR_GOOD) {
            return Verdict::ForGood;
        }
        let policy = self.policy;
        if code == Some(0) && now.duration_since(since) >= policy.stay {
            return Verdict::Restart(policy.first);
        }
        let is_old = |death: &Instant| now.duration_since(*death) >= policy.window;
        while self.deaths.front().is_some_and(is_old) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        if self.deaths.len() >= policy.deaths_max {
            return Verdict::TooOften;
        }
        let Some(doublings) = self.deaths.len().checked_sub(2) else {
            return Verdict::Restart(policy.first);
        };
        let doublings = u32::try_from(doublings).unwrap_or(u32::MAX).min(16);
        let backoff = policy.backoff_min.saturating_mul(1 << doublings);
        Verdict::Restart(backoff.min(policy.backoff_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_first_restart_is_quick_and_backoff_doubles_until_the_worker_is_given_up() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let start = Instant::now();
        let verdicts: Vec<Verdict> = (0..5)
            .map(|i| restarts.died(start + i * 100 * SECOND, start, Some(1)))
            .collect();
        let waits = [50, 1_000, 2_000, 4_000].map(|ms| Verdict::Restart(Duration::from_millis(ms)));
        assert_eq!(verdicts[..4], waits);
        assert_eq!(verdicts[4], Verdict::TooOften);
    }

    #[test]
    fn old_deaths_are_forgotten() {
        let policy = RestartPolicy::default();
        let mut restarts = Restarts::new(policy);
        let start = Instant::now();
        for i in 0..50 {
            let verdict = restarts.died(start + 601 * i * SECOND, start, None);
            assert_eq!(verdict, Verdict::Restart(policy.first), "death {i}");
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
        let last = (0..60).map(|_| restarts.died(now, now, Some(1))).last();
        assert_eq!(last, Some(Verdict::Restart(policy.backoff_max)));
    }

    #[test]
    fn a_usage_error_is_for_good() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let now = Instant::now();
        assert_eq!(
            restarts.died(now, now, Some(EXIT_FOR_GOOD)),
            Verdict::ForGood
        );
    }

    #[test]
    fn a_worker_that_was_told_to_end_has_not_died_but_one_that_ends_at_once_has() {
        let policy = RestartPolicy::default();
        let start = Instant::now();
        let ends = |life: Duration| {
            let mut restarts = Restarts::new(policy);
            (0..20)
                .map(|_| restarts.died(start + life, start, Some(0)))
                .last()
        };
        assert_eq!(ends(policy.stay), Some(Verdict::Restart(policy.first)));
        assert_eq!(ends(SECOND), Some(Verdict::TooOften));
    }
}
