//! A worker's place as others see it: who lives there, and what its keeper can be asked to do.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait for a keeper: who gives them waits for each.
const ORDERS: usize = 4;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    /// The name under which it attaches.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// When it was started.
    pub since: Instant,
}

/// How a worker is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The old one ends before the new one starts: never more memory than for one.
    OldFirst,
    /// The new one starts under another name; the old one ends at [`Place::retire`].
    NewFirst,
}

/// What a keeper is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// Start a successor; answered when it runs.
    Replace(Replace, oneshot::Sender<Result<Alive, String>>),
    /// The successor that was started first has attached (`true`), or is not wanted: the other one
    /// ends.
    Settle(bool, oneshot::Sender<()>),
    /// This process is of no use: kill it and see it as dead of this cause.
    Kill(u32, String),
}

/// What is known of a place.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Who is to serve here.
    pub(super) now: Option<Alive>,
    /// Who is to serve here next, if it was started before the other ended.
    pub(super) next: Option<Alive>,
    /// It is not started again.
    pub(super) is_given_up: bool,
}

/// One worker's place; cheap to clone.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its first name.
    pub name: String,
    orders: mpsc::Sender<Order>,
    known: Arc<Mutex<Known>>,
}

/// The keeper's end of a place.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) known: Arc<Mutex<Known>>,
}

impl Place {
    pub(super) fn new(name: String) -> (Self, Desk) {
        let (sender, orders) = mpsc::channel(ORDERS);
        let known = Arc::<Mutex<Known>>::default();
        let place = Self {
            name,
            orders: sender,
            known: Arc::clone(&known),
        };
        (place, Desk { orders, known })
    }

    /// Who serves here, if anyone runs.
    pub fn now(&self) -> Option<Alive> {
        self.known.lock().now.clone()
    }

    /// Whether this process is who serves here or will.
    pub fn holds(&self, pid: u32) -> bool {
        let known = self.known.lock();
        let mut both = known.now.iter().chain(&known.next);
        both.any(|alive| alive.pid == pid)
    }

    /// Whether the worker is not started again.
    pub fn is_given_up(&self) -> bool {
        self.known.lock().is_given_up
    }

    /// Starts a successor, also of a worker that was given up; returns it once its process runs.
    pub async fn replace(&self, how: Replace) -> Result<Alive, String> {
        let (told, answer) = oneshot::channel();
        let gone = || "its supervisor has ended".to_owned();
        let sent = self.orders.send(Order::Replace(how, told)).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// After [`Replace::NewFirst`]: ends the old worker if the new one `is_attached`, else the new
    /// one; returns when it has ended.
    pub async fn settle(&self, is_attached: bool) {
        let (told, answer) = oneshot::channel();
        if (self.orders.send(Order::Settle(is_attached, told)).await).is_ok() {
            // The keeper ended: so have both.
            let _ = answer.await;
        }
    }

    /// Kills this process if it still serves here, which counts as a death of this cause.
    pub async fn kill(&self, pid: u32, why: String) {
        // No keeper, no process.
        let _ = self.orders.send(Order::Kill(pid, why)).await;
    }
}
