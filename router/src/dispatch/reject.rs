//! The brain's reasons as rows of the error table.

use std::time::Duration;

use dopd_core::{
    request::{MissedTarget, RejectReason},
    units::Micros,
};

use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
};

/// The bounds that messages name.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    limits: LimitsConfig,
    /// How long one that missed its target waits at most.
    late_max: Micros,
}

impl Bounds {
    pub(super) const fn new(limits: LimitsConfig, late_max: Micros) -> Self {
        Self { limits, late_max }
    }

    /// What a client is told.
    pub(super) fn error(
        &self,
        why: RejectReason,
        missed: MissedTarget,
        retry_after: Micros,
    ) -> Error {
        let error = match why {
            RejectReason::QueueFull => Error::new(
                Reason::QueueFull,
                format!(
                    "too many requests wait (limits: {} requests, {} prompt tokens), try again",
                    self.limits.queue_requests_max, self.limits.queue_tokens_max
                ),
            ),
            RejectReason::NoWorker => Error::new(
                Reason::NoWorker,
                format!(
                    "no worker that could serve the request was attached within {} ms",
                    self.limits.no_worker_wait_ms
                ),
            ),
            RejectReason::TooLarge => Error::new(
                Reason::ContextLengthExceeded,
                "prompt and answer fit no attached worker, even an empty one: shorten the prompt \
                 or lower max_tokens",
            ),
            RejectReason::DeadlineExceeded => Error::new(
                Reason::DeadlineExceeded,
                "the deadline passed before the answer was complete",
            ),
            RejectReason::Late => Error::new(
                Reason::SloLate,
                format!(
                    "no worker was free for {} ms, the target for the first token is {} ms, and \
                     what is late waits {} ms longer at most (policy.late_max_ms): try again, or \
                     ask for a longer target",
                    millis(missed.wait),
                    millis(missed.target),
                    millis(self.late_max)
                ),
            ),
            RejectReason::Unmeetable => Error::new(
                Reason::SloUnmeetable,
                format!(
                    "even if it went first it would wait {} ms for its first token, and the \
                     target is {} ms (refused at once, as policy.refuse is early): try again, or \
                     ask for a longer target",
                    millis(missed.wait),
                    millis(missed.target)
                ),
            ),
            RejectReason::WorkerFailed => Error::new(
                Reason::WorkerFailed,
                "workers failed under the request more often than it may be replayed",
            ),
            RejectReason::EngineError => {
                Error::new(Reason::WorkerFailed, "the engine failed under the request")
            }
            RejectReason::PoisonSuspect => Error::new(
                Reason::PoisonSuspect,
                "several workers died under the request; it is not tried again",
            ),
            RejectReason::Draining => Error::new(Reason::Draining, "the router is shutting down"),
        };
        if retry_after == Micros(0) {
            error
        } else {
            error.with_retry_after(Duration::from_micros(retry_after.0))
        }
    }
}

/// Rounded up, so that what is missed by little does not look met.
const fn millis(time: Micros) -> u64 {
    time.0.div_ceil(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(why: RejectReason, wait: u64) -> Error {
        let bounds = Bounds::new(LimitsConfig::default(), Micros::from_millis(10_000));
        let missed = MissedTarget {
            target: Micros::from_millis(500),
            wait: Micros(wait),
        };
        bounds.error(why, missed, Micros::from_millis(1_500))
    }

    #[test]
    fn who_missed_a_target_is_told_its_numbers_and_when_to_try_again() {
        let late = told(RejectReason::Late, 10_500_000);
        let never = told(RejectReason::Unmeetable, 500_001);
        assert_eq!(late.reason, Reason::SloLate);
        assert_eq!(never.reason, Reason::SloUnmeetable);
        for error in [&late, &never] {
            assert_eq!(error.retry_after, Some(Duration::from_millis(1_500)));
        }
        assert_eq!(
            late.message,
            "no worker was free for 10500 ms, the target for the first token is 500 ms, and what \
             is late waits 10000 ms longer at most (policy.late_max_ms): try again, or ask for a \
             longer target"
        );
        assert_eq!(
            never.message,
            "even if it went first it would wait 501 ms for its first token, and the target is \
             500 ms (refused at once, as policy.refuse is early): try again, or ask for a longer \
             target"
        );
    }
}
