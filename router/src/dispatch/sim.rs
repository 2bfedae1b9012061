//! The brain's side of dispatch for the deterministic simulation (`router/protocol`): the same
//! driver as on the brain's thread, without thread and clock. Not part of the router's interface.

use std::{collections::HashMap, sync::Arc};

use dopd_core::{
    brain::{Brain, BrainConfig, BrainStatus},
    event::Event,
    units::Micros,
};
use dopd_sync::Count;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::records::LimitsConfig,
    dispatch::{Dispatch, Shared, driver::Driver, pulse::Pulse, reject::Bounds, tally::Tally},
    streams::{
        messages::{BrainInput, FrontMessage},
        outbox::{BRAIN_QUEUE, FRONT_QUEUE, Queues},
    },
};

/// A driver with its queues.
pub struct Sim {
    driver: Driver,
    inputs: mpsc::Receiver<BrainInput>,
    fronts: Vec<mpsc::Receiver<FrontMessage>>,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").finish_non_exhaustive()
    }
}

impl Sim {
    /// A brain that knows nothing, and queues to so many fronts.
    pub fn new(config: BrainConfig, limits: LimitsConfig, fronts: u16) -> Self {
        let (brain, inputs) = mpsc::channel(BRAIN_QUEUE);
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..fronts).map(|_| mpsc::channel(FRONT_QUEUE)).unzip();
        let dispatch = Dispatch {
            queues: Queues {
                brain,
                fronts: senders.into(),
            },
            shared: Arc::new(Shared {
                start: Instant::now(),
                next_request: 1.into(),
                active: Count::default(),
                is_ready: false.into(),
                is_draining: false.into(),
                prefix_cache: false,
                page_size: 0.into(),
                labels: Mutex::default(),
                pulse: Pulse::default(),
                drain: Notify::new(),
                stop: CancellationToken::new(),
                cancels: Vec::new(),
                receivers: Mutex::new(Vec::new()),
            }),
        };
        let bounds = Bounds::new(limits, config.policy.late_max);
        Self {
            driver: Driver {
                brain: Brain::new(config),
                recorder: None,
                dispatch,
                bounds,
                sessions: HashMap::new(),
                handoffs: Tally::default(),
                is_draining: false,
            },
            inputs,
            fronts: receivers,
        }
    }

    /// The way in, for fronts.
    pub fn queues(&self) -> Queues {
        self.driver.dispatch.queues.clone()
    }

    /// Takes the next input from the brain's queue, for `act`.
    pub fn next_input(&mut self) -> Option<BrainInput> {
        self.inputs.try_recv().ok()
    }

    /// Takes the next message from a front's queue, for [`crate::streams::front::Front::handle`].
    pub fn next_message(&mut self, front: usize) -> Option<FrontMessage> {
        self.fronts.get_mut(front)?.try_recv().ok()
    }

    /// Whether an input waits.
    pub fn has_input(&self) -> bool {
        !self.inputs.is_empty()
    }

    /// Whether a message waits for a front.
    pub fn has_message(&self, front: usize) -> bool {
        self.fronts
            .get(front)
            .is_some_and(|queue| !queue.is_empty())
    }

    /// Handles an input. False: a front's queue is full, and what it was to hear is lost.
    pub fn input(&mut self, now: Micros, input: BrainInput) -> bool {
        self.driver.input(now, input).now_or_never().is_some()
    }

    /// Handles an event that no input brings: a move, a wake. False as above.
    pub fn event(&mut self, now: Micros, event: Event) -> bool {
        self.driver.feed(now, event).now_or_never().is_some()
    }

    /// When the brain wants to be woken.
    pub fn next_wake(&self) -> Option<Micros> {
        self.driver.brain.next_wake()
    }

    /// The brain as it shows itself.
    pub fn status(&self) -> BrainStatus {
        self.driver.brain.status()
    }

    /// Seats that dispatch knows of: their grants are held here.
    pub fn seats(&self) -> usize {
        let sessions = self.driver.sessions.values();
        sessions.map(|session| session.seats.len()).sum()
    }
}
