//! The router: the real driver with its brain, the real fronts, streams, links and leases. What is
//! simulated is when each of them gets to run, and how its clock goes.

use std::{rc::Rc, sync::Arc};

use dopd_core::{
    brain::BrainConfig,
    event::Event,
    ids::{RequestId, SequenceId, SessionId},
    units::Micros,
};
use dopd_router::{
    config::records::{LimitsConfig, WorkersConfig},
    dispatch::sim::Sim,
    metrics::Metrics,
    streams::{front::Front, messages::FrontMessage},
    wire::worker::KvCheck,
    workers::{AttachConfig, Attachments},
};

use crate::{
    clock::{Clock, Ev},
    plan::Plan,
};

/// Inputs that the brain takes at once, at most.
const INPUTS_MAX: u64 = 4;

/// One process of the router.
pub(crate) struct Router {
    pub(crate) epoch: u32,
    pub(crate) sim: Sim,
    pub(crate) fronts: Vec<Rc<Front>>,
    pub(crate) attachments: Arc<Attachments>,
    /// Its threads stand still until then.
    pub(crate) stalled: Micros,
    started: Micros,
    rate: u64,
    requests: u64,
    brain_waits: bool,
    front_waits: Vec<bool>,
    wake: Option<Micros>,
}

impl Router {
    pub(crate) fn new(plan: &Plan, metrics: &Metrics, epoch: u32, now: Micros) -> Self {
        let limits = LimitsConfig::default();
        let config = BrainConfig {
            seed: plan.seed.wrapping_add(u64::from(epoch)),
            ..BrainConfig::default()
        };
        let sim = Sim::new(config, limits, plan.fronts);
        let fronts = (0..plan.fronts)
            .map(|index| Front::new(index, sim.queues()))
            .collect();
        let workers = WorkersConfig {
            kv_check: match plan.kv_check {
                KvCheck::Off => "off",
                KvCheck::Full => "full",
                _ => "header",
            }
            .to_owned(),
            ..WorkersConfig::default()
        };
        let attach = AttachConfig {
            workers,
            join_token: "token".to_owned(),
            model_name: "mock".to_owned(),
            model_hash: None,
            vocab_size: None,
            step: dopd_core::step::StepPolicy::default(),
            prefix_cache: true,
        };
        // A router that comes back has other sessions: in truth by chance, here for sure.
        let seed = 7 + epoch;
        Self {
            epoch,
            sim,
            fronts,
            attachments: Attachments::seeded(attach, metrics.clone(), seed),
            stalled: Micros(0),
            started: now,
            rate: plan.rates.first().copied().unwrap_or(1_000),
            requests: 0,
            brain_waits: false,
            front_waits: vec![false; usize::from(plan.fronts)],
            wake: None,
        }
    }

    /// What the router's clock shows.
    pub(crate) fn time(&self, now: Micros) -> Micros {
        Micros(now.since(self.started).0 * self.rate / 1_000)
    }

    /// When the router's clock will show `time`.
    pub(crate) fn when(&self, time: Micros) -> Micros {
        let since = time.0.saturating_mul(1_000).div_ceil(self.rate.max(1));
        self.started.plus(Micros(since))
    }

    /// A name for a request that front `front` owns, as dispatch mints it.
    pub(crate) fn mint(&mut self, front: u16) -> RequestId {
        self.requests += 1;
        RequestId(self.requests * self.fronts.len() as u64 + u64::from(front))
    }

    /// The brain reads its queue.
    pub(crate) fn run_brain(&mut self, clock: &mut Clock) {
        self.brain_waits = false;
        for _ in 0..clock.random.between(1, INPUTS_MAX) {
            let Some(input) = self.sim.next_input() else {
                break;
            };
            clock.say(|| format!("brain   <- {input:?}"));
            let now = self.time(clock.now());
            if !self.sim.input(now, input) {
                clock.broken("a queue of the router is full".to_owned());
            }
        }
    }

    /// The brain's timer, or a wish that has no other way in.
    pub(crate) fn event(&mut self, clock: &mut Clock, event: Event) {
        if event == Event::Woke {
            self.wake = None;
        }
        let now = self.time(clock.now());
        if !self.sim.event(now, event) {
            clock.broken("a queue of the router is full".to_owned());
        }
    }

    /// A front thread reads its queue.
    pub(crate) fn run_front(&mut self, clock: &mut Clock, index: u16) {
        let place = usize::from(index);
        self.front_waits[place] = false;
        for _ in 0..clock.random.between(1, INPUTS_MAX) {
            let Some(message) = self.sim.next_message(place) else {
                break;
            };
            clock.say(|| format!("front {index} <- {message:?}"));
            if let FrontMessage::Break(session) = message {
                clock.broken(format!(
                    "the brain found that session {session:?} broke the protocol"
                ));
            }
            self.fronts[place].handle(message);
        }
    }

    /// Runs what has something to do, soon.
    pub(crate) fn settle(&mut self, clock: &mut Clock) {
        if self.sim.has_input() && !self.brain_waits {
            self.brain_waits = true;
            let delay = clock.random.delay_us(100);
            clock.after(delay, Ev::Brain(self.epoch));
        }
        for index in 0..self.fronts.len() {
            if self.sim.has_message(index) && !self.front_waits[index] {
                self.front_waits[index] = true;
                let delay = clock.random.delay_us(100);
                let front = u16::try_from(index).unwrap_or(0);
                clock.after(delay, Ev::Front(self.epoch, front));
            }
        }
        if let Some(wake) = self.sim.next_wake().map(|wake| self.when(wake))
            && self.wake.is_none_or(|at| wake < at || at <= clock.now())
        {
            self.wake = Some(wake);
            let late = clock.random.delay_us(1_000);
            clock.at(wake.plus(Micros(late)), Ev::Wake(self.epoch));
        }
    }

    /// Asks the brain to move a running sequence.
    pub(crate) fn move_to(&mut self, clock: &mut Clock, sequence: SequenceId, to: SessionId) {
        clock.say(|| format!("brain   <- move {sequence:?} to {to:?}"));
        self.event(clock, Event::MoveRequested { sequence, to });
    }
}
