//! What the service needs of dispatch, as a trait: tests put a player of canned tokens in its
//! place and drive both fronts through real sockets without a worker.

use std::{fmt, future::Future, pin::Pin};

use crate::{
    dispatch::{Dispatch, Submission},
    error::Error,
    status::{FleetStatus, Readiness},
};

/// A running request; dropping it before the answer is complete cancels it.
pub type Running = Box<dyn Send>;

/// Where requests go.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Takes a request. Its sinks are called on this thread, never before this returned.
    fn submit(&self, submission: Submission) -> Result<Running, Error>;

    /// Whether a worker is attached that takes requests.
    fn is_ready(&self) -> bool;

    /// Whether what schedules requests runs.
    fn is_alive(&self) -> bool {
        true
    }

    /// Whether a request that comes now would be answered.
    fn readiness(&self) -> Readiness {
        if self.is_ready() {
            Readiness::ready()
        } else {
            Readiness::missing("no_worker", "no worker takes requests")
        }
    }

    /// A snapshot of the fleet.
    fn status(&self) -> Pin<Box<dyn Future<Output = FleetStatus> + Send + '_>>;
}

impl Backend for Dispatch {
    fn submit(&self, submission: Submission) -> Result<Running, Error> {
        Ok(Box::new(Self::submit(self, submission)?))
    }

    fn is_ready(&self) -> bool {
        Self::is_ready(self)
    }

    fn is_alive(&self) -> bool {
        Self::is_alive(self)
    }

    fn readiness(&self) -> Readiness {
        Self::readiness(self)
    }

    fn status(&self) -> Pin<Box<dyn Future<Output = FleetStatus> + Send + '_>> {
        Box::pin(Self::status(self))
    }
}
