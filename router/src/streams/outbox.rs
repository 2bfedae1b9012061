//! The way out of a front thread: to the brain and to the other front threads, in order.
//!
//! Posting never waits, so it can be done from the receiver of the thread's own queue and from
//! within a sink. What finds its queue full waits here and is sent by [`Outbox::pump`].
//!
//! Bound: a stream posts at most one end, a seat at most what the brain decided on it; the readers
//! of worker streams, which could post without end, wait in [`Outbox::ready`] after each report
//! while more than [`WAITING_MAX`] messages are here.

use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use tokio::sync::{Notify, mpsc};

use crate::streams::messages::{BrainInput, FrontMessage};

/// Messages to the brain that may wait in its queue.
pub const BRAIN_QUEUE: usize = 16_384;

/// Messages that may wait in the queue of one front thread.
pub const FRONT_QUEUE: usize = 4_096;

/// Messages in an outbox above which readers of worker streams pause.
pub const WAITING_MAX: usize = 64;

/// Queues that a thread can write to.
#[derive(Clone, Debug)]
pub struct Queues {
    /// The brain's.
    pub brain: mpsc::Sender<BrainInput>,
    /// Those of the front threads, by index.
    pub fronts: Arc<[mpsc::Sender<FrontMessage>]>,
}

/// A message with its destination.
#[derive(Debug)]
enum Outgoing {
    Brain(BrainInput),
    Front(u16, FrontMessage),
}

/// Everything that leaves one front thread.
#[derive(Debug)]
pub struct Outbox {
    queues: Queues,
    waiting: RefCell<VecDeque<Outgoing>>,
    added: Notify,
    sent: Notify,
}

impl Outbox {
    /// Nothing waits.
    pub fn new(queues: Queues) -> Self {
        Self {
            queues,
            waiting: RefCell::new(VecDeque::new()),
            added: Notify::new(),
            sent: Notify::new(),
        }
    }

    /// The queues themselves, for those who handle a full queue in their own way.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Sends to the brain, after everything that was posted before.
    pub fn to_brain(&self, input: BrainInput) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            waiting.push_back(Outgoing::Brain(input));
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(input)) = self.queues.brain.try_send(input) {
            waiting.push_back(Outgoing::Brain(input));
            self.added.notify_one();
        }
    }

    /// Sends to front thread `index`, after everything that was posted before.
    pub fn to_front(&self, index: u16, message: FrontMessage) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            waiting.push_back(Outgoing::Front(index, message));
            return;
        }
        let Some(queue) = self.queues.fronts.get(usize::from(index)) else {
            tracing::error!(index, "message for a front thread that does not exist");
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(message)) = queue.try_send(message) {
            waiting.push_back(Outgoing::Front(index, message));
            self.added.notify_one();
        }
    }

    /// Waits until few enough messages are here.
    pub async fn ready(&self) {
        while self.waiting.borrow().len() > WAITING_MAX {
            self.sent.notified().await;
        }
    }

    /// Sends what waits; runs as long as its thread.
    pub async fn pump(&self) {
        enum Place<'a> {
            Brain(mpsc::Permit<'a, BrainInput>),
            Front(mpsc::Permit<'a, FrontMessage>),
            Gone,
        }
        loop {
            // A message stays at the head until its queue has room, so that nothing overtakes it.
            let head = match self.waiting.borrow().front() {
                None => None,
                Some(Outgoing::Brain(_)) => Some(None),
                Some(Outgoing::Front(index, _)) => Some(Some(usize::from(*index))),
            };
            let place = match head {
                None => {
                    self.added.notified().await;
                    continue;
                }
                Some(None) => (self.queues.brain.reserve().await).map_or(Place::Gone, Place::Brain),
                Some(Some(index)) => match self.queues.fronts.get(index) {
                    Some(queue) => queue.reserve().await.map_or(Place::Gone, Place::Front),
                    None => Place::Gone,
                },
            };
            let message = self.waiting.borrow_mut().pop_front();
            match (place, message) {
                (Place::Brain(permit), Some(Outgoing::Brain(input))) => permit.send(input),
                (Place::Front(permit), Some(Outgoing::Front(_, message))) => permit.send(message),
                // The receiver ended: the router shuts down.
                _ => {}
            }
            self.sent.notify_waiters();
        }
    }
}
