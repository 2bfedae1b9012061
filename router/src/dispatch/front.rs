//! The loop of a front thread: takes messages for its streams and links, sends what waits.

use std::{future::Future, rc::Rc, sync::Arc};

use tokio::sync::mpsc;

use crate::{
    dispatch::{Dispatch, Shared, draining},
    streams::{front::Front, messages::FrontMessage},
};

/// Messages taken at once.
const BATCH: usize = 256;

/// Installs the front of this thread; the future runs it.
pub(super) fn run(dispatch: &Dispatch, index: usize) -> impl Future<Output = ()> + 'static {
    let receiver = (dispatch.shared.receivers.lock().get_mut(index)).and_then(Option::take);
    let installed = u16::try_from(index)
        .ok()
        .map(|index| Installed::new(Front::new(index, dispatch.queues.clone())));
    let shared = Arc::clone(&dispatch.shared);
    async move {
        let (Some(mut receiver), Some(installed)) = (receiver, installed) else {
            tracing::error!(
                index,
                "front loop of a thread that does not exist or runs already"
            );
            return;
        };
        let front = &installed.front;
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => {}
            () = receive(front, &mut receiver) => {}
            () = cancel(front, &shared) => {}
            () = front.outbox.pump() => {}
        }
        let error = draining("the router was shut down before the answer was complete");
        front.streams.fail_all(&error);
    }
}

/// Handles messages; awaits nothing but them, so that senders may wait for room.
async fn receive(front: &Front, receiver: &mut mpsc::Receiver<FrontMessage>) {
    let mut batch = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut batch, BATCH).await > 0 {
        for message in batch.drain(..) {
            front.handle(message);
        }
    }
}

/// Cancels what was given up on other threads.
async fn cancel(front: &Front, shared: &Shared) {
    let Some(cancels) = shared.cancels.get(usize::from(front.index)) else {
        return std::future::pending().await;
    };
    loop {
        let all = cancels
            .take(|cancels| (!cancels.is_empty()).then(|| std::mem::take(cancels)))
            .await;
        for keys in all {
            front.cancel(&keys);
        }
    }
}

/// A front while it is its thread's.
struct Installed {
    front: Rc<Front>,
}

impl Installed {
    fn new(front: Rc<Front>) -> Self {
        front.install();
        Self { front }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        self.front.uninstall();
    }
}
