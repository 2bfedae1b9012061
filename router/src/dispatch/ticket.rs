//! A running request as its owner holds it.

use std::sync::Arc;

use crate::{
    dispatch::Dispatch,
    streams::{front::Front, key::StreamKey, messages::FrontMessage},
};

/// Holds a request open: dropping it before the answer is complete cancels the request. `Send`, but
/// meant to be dropped on the front thread that submitted; anywhere else it takes a message.
#[derive(Debug)]
pub struct Ticket {
    dispatch: Dispatch,
    keys: Arc<[StreamKey]>,
}

impl Ticket {
    pub(super) fn new(dispatch: Dispatch, keys: Arc<[StreamKey]>) -> Self {
        Self { dispatch, keys }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(thread) = self.keys.first().map(|key| key.thread) else {
            return;
        };
        let front =
            Front::current().filter(|front| front.index == thread && self.dispatch.owns(front));
        if let Some(front) = front {
            front.cancel(&self.keys);
            return;
        }
        let Some(queue) = self.dispatch.queues.fronts.get(usize::from(thread)) else {
            return;
        };
        // After shutdown the queue is closed, and nothing is left to cancel.
        if let Err(tokio::sync::mpsc::error::TrySendError::Full(_)) =
            queue.try_send(FrontMessage::Cancel(Arc::clone(&self.keys)))
        {
            tracing::warn!(
                thread,
                "a cancelled request runs on until its deadline: queue full"
            );
        }
    }
}
