//! The brain's thread as its owner holds it.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::error::{Error, Reason};

/// How often the wait for the thread's end looks again.
const JOIN_POLL: Duration = Duration::from_millis(2);

/// The running brain thread.
#[derive(Debug)]
pub struct BrainThread {
    handle: JoinHandle<()>,
}

impl BrainThread {
    pub(super) fn new(handle: JoinHandle<()>) -> Self {
        Self { handle }
    }

    /// Waits until the thread has ended; call [`Dispatch::shutdown`] before.
    pub fn join(self) -> Result<(), Error> {
        (self.handle.join())
            .map_err(|_| Error::new(Reason::Internal, "the brain's thread panicked"))
    }

    /// As [`BrainThread::join`], but a thread that waits for a front thread that hangs is left
    /// after `limit`.
    pub fn join_within(self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        while !self.handle.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!("the brain's thread did not end within {limit:?}; it is left");
                return Ok(());
            }
            thread::sleep(JOIN_POLL);
        }
        self.join()
    }
}
