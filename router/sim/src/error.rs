//! Why a scenario cannot run. Called by `engine`.

use dopd_core::{cost::TimingsError, policy::PolicyError};

/// Most requests of a trace and most workers of a fleet: what 32 bits count.
pub(crate) const COUNT_MAX: usize = u32::MAX as usize;

/// What is wrong with a scenario. Places are counted from 0.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Nobody could compute anything.
    #[error("the fleet is empty: a run needs at least one worker")]
    NoWorker,
    /// More than can be counted.
    #[error("{what}: {count}, at most {COUNT_MAX}")]
    TooMany {
        /// Of which.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// Not by arrival.
    #[error(
        "request {index} arrives at {arrival_us} us, before the one ahead of it: sort the trace"
    )]
    Unsorted {
        /// Its place in the trace.
        index: usize,
        /// Its arrival.
        arrival_us: u64,
    },
    /// Nothing to compute, or too much to count.
    #[error(
        "request {index} has {prompt} prompt and {output} answer tokens: each must be 1 to 2^30"
    )]
    Length {
        /// Its place in the trace.
        index: usize,
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens of the answer.
        output: u32,
    },
    /// Its timings are no timings.
    #[error("worker {index}: {source}")]
    Timings {
        /// Its place in the fleet.
        index: usize,
        /// What they are.
        source: TimingsError,
    },
    /// A number of a worker is out of its limits.
    #[error("worker {index}: {field} is {value}, must be {limits}")]
    Worker {
        /// Its place in the fleet.
        index: usize,
        /// Which.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        limits: &'static str,
    },
    /// A constant of the policy is out of its limits.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A fault of a worker that is not there.
    #[error("fault {index} is of worker {worker}, but there are {workers}, counted from 0")]
    Fault {
        /// Its place in the list.
        index: usize,
        /// Whose.
        worker: usize,
        /// How many there are.
        workers: usize,
    },
    /// A fault slows a worker down by no such factor.
    #[error("fault {index} slows its worker down {ratio} times, must be 0.001 to 1000000")]
    Slowness {
        /// Its place in the list.
        index: usize,
        /// How many times.
        ratio: f64,
    },
    /// Faults are not by time.
    #[error("fault {index} is before the one ahead of it: sort them by time")]
    FaultsUnsorted {
        /// Its place in the list.
        index: usize,
    },
    /// The caller broke it off.
    #[error("stopped after {ended} of {requests} requests")]
    Stopped {
        /// Requests that ended.
        ended: usize,
        /// Of how many.
        requests: usize,
    },
}
