//! From a scenario to a run, and from a run to its outcome.

use std::{
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
};

use dopd_core::{
    brain::Brain,
    ids::SessionId,
    units::{Micros, Tokens},
};

use super::{Engine, Post, faults::facts, requests::Requests};
use crate::{
    calendar::Calendar,
    check,
    error::SimError,
    outcome::{Ending, Outcome, RequestOutcome},
    run::Options,
    scenario::{Scenario, SloRule, TraceRequest, WorkerSpec},
    worker::{Terms, Worker},
};

impl<'a> Engine<'a> {
    pub(crate) fn new(scenario: &'a Scenario, options: Options) -> Result<Self, SimError> {
        let workers = check::scenario(scenario)?;
        let terms = Terms {
            policy: scenario.brain.policy.step,
            tell_every: options.tell_every,
        };
        let mut brain = scenario.brain.clone();
        brain.seed ^= scenario.seed;
        let first = &scenario.fleet[0];
        let outcomes = scenario.trace.requests.iter();
        let outcomes = outcomes.map(|request| unknown(request, &scenario.slo, first));
        let posts = (0..workers).zip(&scenario.fleet).map(|(index, spec)| Post {
            session: None,
            heard: None,
            worker: Worker::new(
                index,
                spec,
                &scenario.trace,
                terms,
                facts(index, SessionId(0), spec),
            ),
            seats: Vec::new(),
            slowness: 1.0,
        });
        let len_max = scenario.fleet.iter().map(|spec| spec.model_len_max).max();
        let caches = scenario.fleet.iter().find(|spec| spec.has_prefix_cache);
        let mark_tokens = caches.map(|spec| spec.page_tokens);
        let mut engine = Self {
            scenario,
            options,
            terms,
            brain: Brain::new(brain),
            wake: None,
            now: Micros(0),
            posts: posts.collect(),
            // Sessions count from 1.
            sessions: vec![u32::MAX],
            requests: Requests::new(outcomes.collect()),
            arrived: 0,
            faulted: 0,
            len_max: len_max.unwrap_or(0),
            mark_tokens,
            calendar: Calendar::new(workers),
            commands: VecDeque::new(),
            reports: VecDeque::new(),
            reports_read: Vec::new(),
            losses: VecDeque::new(),
            flights: BinaryHeap::new(),
            flights_ever: 0,
            returns: BinaryHeap::new(),
            lives: 0,
            events: 0,
            no_marks: Arc::from([]),
            breaks: 0,
        };
        (0..workers).for_each(|index| engine.join(index));
        Ok(engine)
    }

    pub(super) fn outcome(self) -> Outcome {
        Outcome {
            workers: self.posts.iter().map(|post| post.worker.outcome).collect(),
            end: self.now,
            events: self.events,
            breaks: self.breaks + self.requests.doubled,
            pages_left: self.posts.iter().map(|post| post.worker.pages_held()).sum(),
            requests: self.requests.into_outcomes(),
        }
    }
}

/// What is known of a request before it comes.
fn unknown(request: &TraceRequest, slo: &SloRule, first: &WorkerSpec) -> RequestOutcome {
    let prefill = first.timings.prefill_us(Tokens(request.prompt_tokens)).0;
    let scaled = libm::round(slo.ttft_prefill_ratio * prefill as f64);
    RequestOutcome {
        arrival: request.arrival,
        prompt_tokens: request.prompt_tokens,
        output_tokens: request.output_tokens,
        tenant: request.tenant,
        ttft_target: slo.ttft.max(Micros(whole(scaled))),
        first: None,
        end: None,
        ending: Ending::Unfinished,
        is_stolen: false,
        is_kept: false,
        preemptions: 0,
        replays: 0,
        cached_tokens: 0,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast stops at the ends of u64"
)]
const fn whole(us: f64) -> u64 {
    us as u64
}
