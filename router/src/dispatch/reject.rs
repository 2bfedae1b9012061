//! The brain's reasons as rows of the error table.

use std::time::Duration;

use dopd_core::{request::RejectReason, units::Micros};

use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
};

/// What a client is told.
pub(super) fn error(why: RejectReason, retry_after: Micros, limits: &LimitsConfig) -> Error {
    let error = match why {
        RejectReason::QueueFull => Error::new(
            Reason::QueueFull,
            format!(
                "too many requests wait (limits: {} requests, {} prompt tokens), try again",
                limits.queue_requests_max, limits.queue_tokens_max
            ),
        ),
        RejectReason::NoWorker => Error::new(
            Reason::NoWorker,
            format!(
                "no worker that could serve the request was attached within {} ms",
                limits.no_worker_wait_ms
            ),
        ),
        RejectReason::TooLarge => Error::new(
            Reason::ContextLengthExceeded,
            "prompt and answer fit no attached worker, even an empty one: shorten the prompt or \
             lower max_tokens",
        ),
        RejectReason::DeadlineExceeded => Error::new(
            Reason::DeadlineExceeded,
            "the deadline passed before the answer was complete",
        ),
        RejectReason::Late => Error::new(
            Reason::SloLate,
            "no worker was free in time: the target for the first token is missed, and the longest \
             wait after it is over",
        ),
        RejectReason::Unmeetable => Error::new(
            Reason::SloUnmeetable,
            "the target for the first token cannot be met now, whatever else waits",
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
