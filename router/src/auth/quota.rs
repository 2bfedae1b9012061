//! Quotas of a key: requests and tokens a minute, and requests at the same time.
//!
//! Two token buckets and a counter for each key of the configuration, so memory is bounded by it.
//! A bucket holds a minute's worth and fills steadily. A request takes its prompt and the longest
//! answers that it allows when it starts, and gets back at its end what it did not use. One that
//! costs more than a minute's worth starts when the bucket is full, and leaves a debt.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::wait;
use crate::{
    config::KeyConfig,
    error::{Error, Reason},
};

const SECONDS_PER_MINUTE: f64 = 60.0;

/// What one key may use.
#[derive(Debug)]
pub(super) struct Quota {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    running_max: Option<u32>,
    running: AtomicU32,
}

/// Where a key stands with one quota.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// A minute's worth.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Until it is full again.
    pub reset: Duration,
}

/// Fills up to `capacity` within a minute.
#[derive(Debug)]
struct Bucket {
    capacity: f64,
    /// Below 0: a debt.
    level: Mutex<Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    amount: f64,
    at: Option<Instant>,
}

/// A running request's hold on its caller's quotas; dropped at its end.
#[derive(Debug)]
pub struct Lease {
    quota: Option<Arc<Quota>>,
    key: Arc<str>,
    /// Tokens taken and not yet known to be used.
    unused: AtomicU64,
}

impl Quota {
    /// The quotas of `config`; `None` if it has none.
    pub(super) fn of(config: &KeyConfig) -> Option<Arc<Self>> {
        let quota = Self {
            requests: config
                .requests_per_minute
                .map(|limit| Bucket::new(f64::from(limit))),
            tokens: config
                .tokens_per_minute
                .map(|limit| Bucket::new(limit as f64)),
            running_max: config.requests_running_max,
            running: AtomicU32::new(0),
        };
        let has_any =
            quota.requests.is_some() || quota.tokens.is_some() || quota.running_max.is_some();
        has_any.then(|| Arc::new(quota))
    }

    pub(super) fn standing(&self, now: Instant) -> [Option<Standing>; 2] {
        [&self.requests, &self.tokens].map(|bucket| Some(bucket.as_ref()?.standing(now)))
    }

    fn enter(&self, key: &str) -> Result<(), Error> {
        let max = self.running_max.unwrap_or(u32::MAX);
        let more = |running: u32| (running < max).then(|| running + 1);
        let entered = self
            .running
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.map(|_| ()).map_err(|running| {
            let message = format!("{running} requests of key {key:?} are running, at most {max}");
            Error::new(Reason::RateLimited, message)
        })
    }

    fn leave(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    pub(super) fn new(
        quota: Option<Arc<Quota>>,
        key: &Arc<str>,
        now: Instant,
    ) -> Result<Self, Error> {
        if let Some(quota) = &quota {
            quota.enter(key)?;
            let taken = take(quota.requests.as_ref(), 1, "requests", key, now);
            taken.inspect_err(|_| quota.leave())?;
        }
        Ok(Self {
            quota,
            key: Arc::clone(key),
            unused: AtomicU64::new(0),
        })
    }

    /// Takes `tokens`: what the request can use at most.
    pub fn charge(&self, tokens: u64, now: Instant) -> Result<(), Error> {
        let bucket = self.quota.as_ref().and_then(|quota| quota.tokens.as_ref());
        if bucket.is_some() {
            take(bucket, tokens, "tokens", &self.key, now)?;
            self.unused.fetch_add(tokens, Ordering::Relaxed);
        }
        Ok(())
    }

    /// `tokens` of what was taken are used: they do not come back.
    pub fn used(&self, tokens: u64) {
        let rest = |unused: u64| Some(unused.saturating_sub(tokens));
        let _ = self
            .unused
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(quota) = &self.quota else { return };
        quota.leave();
        if let Some(bucket) = &quota.tokens {
            bucket.give(*self.unused.get_mut() as f64);
        }
    }
}

fn take(
    bucket: Option<&Bucket>,
    amount: u64,
    what: &str,
    key: &str,
    now: Instant,
) -> Result<(), Error> {
    let Some(bucket) = bucket else { return Ok(()) };
    bucket.take(amount as f64, now).map_err(|wait| {
        let message = format!(
            "key {key:?} may use {} {what} a minute, and this request needs {amount}; try again \
             in {} ms",
            bucket.capacity,
            wait.as_millis()
        );
        Error::new(Reason::RateLimited, message).with_retry_after(wait)
    })
}

impl Bucket {
    fn new(capacity: f64) -> Self {
        let level = Level {
            amount: capacity,
            at: None,
        };
        Self {
            capacity,
            level: Mutex::new(level),
        }
    }

    /// Takes `amount`, or says how long to wait for it.
    fn take(&self, amount: f64, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock();
        *level = self.filled(*level, now);
        let missing = amount.min(self.capacity) - level.amount;
        if missing > 0.0 {
            return Err(wait(missing / self.per_second()));
        }
        level.amount -= amount;
        Ok(())
    }

    fn give(&self, amount: f64) {
        let mut level = self.level.lock();
        level.amount = (level.amount + amount).min(self.capacity);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole numbers from 0 to the limits of settings"
    )]
    fn standing(&self, now: Instant) -> Standing {
        let level = self.filled(*self.level.lock(), now);
        Standing {
            limit: self.capacity as u64,
            remaining: level.amount.max(0.0) as u64,
            reset: wait((self.capacity - level.amount) / self.per_second()),
        }
    }

    fn filled(&self, level: Level, now: Instant) -> Level {
        // Threads may come with times in another order; time does not run back here.
        let at = level.at.map_or(now, |at| at.max(now));
        let passed = level.at.map_or(0.0, |before| (at - before).as_secs_f64());
        Level {
            amount: (level.amount + passed * self.per_second()).min(self.capacity),
            at: Some(at),
        }
    }

    fn per_second(&self) -> f64 {
        self.capacity / SECONDS_PER_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(requests: Option<u32>, tokens: Option<u64>, running: Option<u32>) -> Arc<Quota> {
        let config = KeyConfig {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            requests_running_max: running,
            ..KeyConfig::default()
        };
        Quota::of(&config).unwrap()
    }

    fn begin(quota: &Arc<Quota>, now: Instant) -> Result<Lease, Error> {
        Lease::new(Some(Arc::clone(quota)), &Arc::from("k"), now)
    }

    #[test]
    fn requests_come_back_with_time() {
        let (quota, start) = (quota(Some(60), None, None), Instant::now());
        for _ in 0..60 {
            begin(&quota, start).unwrap();
        }
        let refused = begin(&quota, start).unwrap_err();
        assert_eq!(refused.reason, Reason::RateLimited);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(1)));
        assert!(begin(&quota, start + Duration::from_millis(999)).is_err());
        assert!(begin(&quota, start + Duration::from_millis(1_001)).is_ok());
    }

    #[test]
    fn what_was_not_used_comes_back_at_the_end() {
        let (quota, now) = (quota(None, Some(100), None), Instant::now());
        let lease = begin(&quota, now).unwrap();
        lease.charge(100, now).unwrap();
        assert!(begin(&quota, now).unwrap().charge(1, now).is_err());
        lease.used(30);
        drop(lease);
        let [_, tokens] = quota.standing(now);
        assert_eq!(tokens.map(|tokens| tokens.remaining), Some(70));
        assert!(begin(&quota, now).unwrap().charge(71, now).is_err());
    }

    #[test]
    fn a_request_above_a_minutes_worth_waits_for_a_full_bucket_and_leaves_a_debt() {
        let (quota, start) = (quota(None, Some(60), None), Instant::now());
        let lease = begin(&quota, start).unwrap();
        lease.charge(90, start).unwrap();
        lease.used(90);
        drop(lease);
        let next = begin(&quota, start).unwrap();
        let refused = next.charge(1, start).unwrap_err();
        assert_eq!(refused.retry_after, Some(Duration::from_secs(31)));
        let late = start + Duration::from_secs(89);
        assert!(next.charge(1_000, late).is_err());
        assert!(next.charge(1_000, late + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn a_place_is_free_again_when_its_request_ends() {
        let (quota, now) = (quota(Some(3), None, Some(1)), Instant::now());
        let lease = begin(&quota, now).unwrap();
        for _ in 0..5 {
            let refused = begin(&quota, now).unwrap_err();
            assert_eq!(refused.reason, Reason::RateLimited);
        }
        drop(lease);
        // A request that found no place cost none.
        drop(begin(&quota, now).unwrap());
        drop(begin(&quota, now).unwrap());
        assert!(begin(&quota, now).unwrap_err().retry_after.is_some());
        assert_eq!(quota.running.load(Ordering::Relaxed), 0);
    }

    proptest! {
        /// However requests come, no minute sees more than two minutes' worth (a full bucket and
        /// what flows in), and the bucket never holds more than its capacity.
        #[test]
        fn a_minute_is_bounded(
            limit in 1_u64..1_000,
            steps in proptest::collection::vec((0_u64..20_000, 1_u64..500, 0_u64..500), 1..200),
        ) {
            let quota = quota(None, Some(limit), None);
            let start = Instant::now();
            let (mut now, mut spent) = (start, Vec::new());
            for (pause_ms, cost, used) in steps {
                now += Duration::from_millis(pause_ms);
                let cost = cost.min(limit);
                let lease = begin(&quota, now).unwrap();
                if lease.charge(cost, now).is_ok() {
                    let used = used.min(cost);
                    lease.used(used);
                    spent.push((now, used));
                }
                drop(lease);
                let minute = spent.iter().filter(|(at, _)| now - *at < Duration::from_secs(60));
                let sum: u64 = minute.map(|(_, used)| used).sum();
                prop_assert!(sum <= 2 * limit, "{sum} of {limit}");
                let [_, tokens] = quota.standing(now);
                prop_assert!(tokens.is_some_and(|tokens| tokens.remaining <= limit));
            }
        }
    }
}
