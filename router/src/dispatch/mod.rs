//! Drives the brain: turns requests and reports into events, actions into commands.
//!
//! One [`Dispatch`] per router, cloned everywhere. The brain lives on a thread of its own ([`BrainThread`]); each front
//! thread runs [`Dispatch::front`] once and owns the streams of the requests that were submitted on it. Called by
//! `service` (submit), `main` (start, drain, shutdown) and `admin` (status).
pub mod submission;
mod ticket;

pub use submission::Submission;
pub use ticket::Ticket;

use std::{future::Future, path::PathBuf};

use crate::{config::records::LimitsConfig, error::Error, status::FleetStatus};

/// What dispatch is started with.
#[derive(Clone, Debug)]
pub struct DispatchConfig {
    /// Bounds on requests and waiting.
    pub limits: LimitsConfig,
    /// Number of front threads, at least 1.
    pub front_threads: usize,
    /// File for the brain's event log.
    pub record: Option<PathBuf>,
    /// Size at which the record is rotated once, in bytes.
    pub record_bytes_max: u64,
}

/// Handle on the brain; cheap to clone.
#[derive(Clone, Debug)]
pub struct Dispatch {}

/// The running brain thread.
#[derive(Debug)]
pub struct BrainThread {}

impl BrainThread {
    /// Waits until the thread has ended; call [`Dispatch::shutdown`] before.
    pub fn join(self) {}
}

impl Dispatch {
    /// Starts the brain thread.
    pub fn start(_config: DispatchConfig) -> Result<(Self, BrainThread), Error> {
        Ok((Self {}, BrainThread {}))
    }

    /// The loop of front thread `index`; run it once on each front thread with `spawn_local`. The thread can submit
    /// from the moment of this call, before the future is first polled. Ends after [`Dispatch::shutdown`].
    pub fn front(&self, _index: usize) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }

    /// Takes a request; must be called on a front thread. Its sinks are called on this thread, never before this
    /// returned. Dropping the ticket before the end cancels the request.
    pub fn submit(&self, _submission: Submission) -> Result<Ticket, Error> {
        Err(Error::new(
            crate::error::Reason::NoWorker,
            "no worker is attached",
        ))
    }

    /// A snapshot of the fleet; default values once the brain thread has ended.
    pub async fn status(&self) -> FleetStatus {
        FleetStatus::default()
    }

    /// Whether a worker is attached that takes requests.
    pub fn is_ready(&self) -> bool {
        false
    }

    /// Refuses new requests from now on; running ones go on.
    pub fn drain(&self) {}

    /// Requests that have not ended.
    pub fn active(&self) -> usize {
        0
    }

    /// Ends the brain thread and all front loops; requests that run fail with `draining`.
    pub fn shutdown(&self) {}
}
