//! A running request as its owner holds it.

use std::sync::Arc;

use crate::{
    dispatch::Dispatch,
    streams::{front::Front, key::StreamKey},
};

/// Holds a request open: dropping it before the answer is complete cancels the request. `Send`, but
/// meant to be dropped on the front thread that submitted, which cancels at once; anywhere else it
/// is left for that thread to find.
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
        // After shutdown nobody looks, and nothing is left to cancel.
        if let Some(cancels) = self.dispatch.shared.cancels.get(usize::from(thread)) {
            cancels.change(|cancels| cancels.push(Arc::clone(&self.keys)));
        }
    }
}
