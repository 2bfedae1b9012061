//! Sequences that grow in pools that are too small for them: workers take pages as they need them
//! and preempt the newest when there is none. Everybody is answered, nothing turns round for ever.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "the scene is no test function; the lint knows those only"
)]

use std::collections::BTreeMap;

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, StepReport},
    fleet::{Role, WorkerFacts, WorkerLoad},
    ids::SlotId,
    policy::PolicyConfig,
    units::{Micros, Pages, Tokens},
};
use proptest::prelude::*;

use crate::support::{PAGE_SIZE, cases, closed, joined, plain, report, request, said, worker};

/// A seat of the worker: of whom, tokens held, tokens to its end, and when it came.
#[derive(Clone, Copy, Debug)]
struct Seat {
    request: u64,
    held: u32,
    left: u32,
    came: u64,
}

/// One mixed worker that makes a token a step for all, and who asked it for what.
struct Scene {
    brain: Brain,
    facts: WorkerFacts,
    now: Micros,
    seats: BTreeMap<u32, Seat>,
    /// Prompt and answer of each request, and what of the answer is made.
    requests: BTreeMap<u64, (u32, u32, u32)>,
    steps: u64,
    ended: usize,
    preempted: u64,
    rejected: usize,
}

impl Scene {
    fn new(pages: u32, policy: PolicyConfig) -> Self {
        let facts = WorkerFacts {
            num_seqs_max: 64,
            ..worker(Role::Mixed, pages)
        };
        let mut brain = Brain::new(BrainConfig {
            policy,
            ..BrainConfig::default()
        });
        brain.handle(Micros(0), joined(1, facts.clone()));
        Self {
            brain,
            facts,
            now: Micros(0),
            seats: BTreeMap::new(),
            requests: BTreeMap::new(),
            steps: 0,
            ended: 0,
            preempted: 0,
            rejected: 0,
        }
    }

    fn tell(&mut self, event: Event) {
        self.now = self.now.plus(Micros(10));
        for action in self.brain.handle(self.now, event) {
            match action {
                Action::Open {
                    seat,
                    sequence,
                    pages,
                    ..
                } => {
                    let request = sequence.request.0;
                    let (prompt, answer, made) = self.requests[&request];
                    let held = prompt + made;
                    assert!(
                        pages.0 * PAGE_SIZE > held.min(prompt + answer - 1),
                        "too few pages"
                    );
                    assert!(self.used() + u64::from(held.div_ceil(PAGE_SIZE)) <= self.pool());
                    let left = answer - made;
                    let came = self.steps;
                    let seat_of = Seat {
                        request,
                        held,
                        left,
                        came,
                    };
                    assert!(self.seats.insert(seat.slot.0, seat_of).is_none());
                }
                Action::Reject { .. } => self.rejected += 1,
                other => panic!("{other:?}"),
            }
        }
    }

    fn pool(&self) -> u64 {
        u64::from(self.facts.pages_total.0)
    }

    fn used(&self) -> u64 {
        let pages = self
            .seats
            .values()
            .map(|seat| seat.held.div_ceil(PAGE_SIZE));
        pages.map(u64::from).sum()
    }

    fn arrive(&mut self, id: u64, prompt: u32, answer: u32, most: u32) {
        self.requests.insert(id, (prompt, answer, 0));
        self.tell(Event::RequestArrived(request(id, prompt, most)));
    }

    /// A token for all; first the newest go until that fits.
    fn step(&mut self) {
        self.steps += 1;
        let mut said_of = report(1, Role::Mixed);
        let grown = |scene: &Self| -> u64 {
            let pages = scene
                .seats
                .values()
                .map(|seat| (seat.held + 1).div_ceil(PAGE_SIZE));
            pages.map(u64::from).sum()
        };
        while grown(self) > self.pool() {
            let newest = self
                .seats
                .iter()
                .max_by_key(|(slot, seat)| (seat.came, **slot));
            let slot = *newest.expect("a lone sequence fits").0;
            self.seats.remove(&slot);
            self.preempted += 1;
            said_of.closed.push(closed(slot, CloseReason::Preempted));
        }
        for (slot, seat) in &mut self.seats {
            seat.held += 1;
            seat.left -= 1;
            said_of.tokens.push((SlotId(*slot), Tokens(1)));
            let of = self.requests.get_mut(&seat.request).expect("known");
            of.2 += 1;
            if seat.left == 0 {
                said_of.closed.push(closed(*slot, CloseReason::Stop));
                self.ended += 1;
            }
        }
        self.seats.retain(|_, seat| seat.left > 0);
        self.tell(said(StepReport {
            load: WorkerLoad {
                step: self.steps,
                pages_owned: Pages(u32::try_from(self.used()).expect("few")),
                ..WorkerLoad::default()
            },
            ..said_of
        }));
    }
}

/// By the future peak, nobody late, so that only pages decide.
fn growing() -> PolicyConfig {
    PolicyConfig {
        reserve: dopd_core::policy::Reserve::FuturePeak,
        peak_z: 0.0,
        ..plain().policy
    }
}

/// 40 short answers, so that lengths are known.
fn taught(scene: &mut Scene) {
    for id in 0..40 {
        scene.arrive(1_000 + id, 4, 6, 60);
    }
    while scene.ended < 40 {
        scene.step();
    }
    assert_eq!(
        (scene.preempted, scene.rejected),
        (0, 0),
        "whole answers were reserved"
    );
}

proptest! {
    #![proptest_config(cases(100))]

    /// Answers are several times as long as all before: promises break, and yet all are answered.
    #[test]
    fn everybody_is_answered_in_a_pool_that_is_too_small(
        pages in 20..60_u32,
        answers in prop::collection::vec((1..20_u32, 1..60_u32), 5..40),
    ) {
        let mut scene = Scene::new(pages, growing());
        taught(&mut scene);
        for (id, &(prompt, answer)) in (0..).zip(&answers) {
            scene.arrive(id, prompt, answer, 60);
        }
        let tokens: u32 = answers.iter().map(|(_, answer)| answer).sum();
        let bound = scene.steps + u64::from(tokens) * 2 + 10;
        while scene.ended < 40 + answers.len() && scene.steps < bound {
            scene.step();
        }
        prop_assert_eq!(scene.ended, 40 + answers.len(), "still running after {} steps", bound);
        prop_assert_eq!(scene.rejected, 0);
        let status = scene.brain.status();
        let preempted = status.replays_by.get("preempted").copied();
        prop_assert_eq!(preempted.unwrap_or(0), scene.preempted);
        prop_assert_eq!(status.sessions[0].pages_used, 0);
    }
}

#[test]
fn future_peak_admits_more_than_whole_answers_and_takes_back_who_is_preempted() {
    let whole = PolicyConfig {
        reserve: dopd_core::policy::Reserve::MaxTokens,
        ..growing()
    };
    let held = |policy| {
        let mut scene = Scene::new(60, policy);
        taught(&mut scene);
        (0..20).for_each(|id| scene.arrive(id, 4, 40, 60));
        let mut admitted = 0;
        while scene.ended < 60 {
            admitted = admitted.max(scene.seats.len());
            scene.step();
        }
        (admitted, scene.preempted, scene.brain.status())
    };
    let (few, none, _) = held(whole);
    let (many, preempted, status) = held(growing());
    assert_eq!((few, none), (3, 0));
    assert!(many >= 10, "{many}");
    assert!(preempted > 0, "answers were longer than all before");
    assert_eq!(status.replays_by["preempted"], preempted);
    assert!(status.replay_tokens_total >= 4 * preempted);
}

#[test]
fn who_is_preempted_twice_is_promised_its_whole_answer_and_goes_before_who_waits() {
    let mut scene = Scene::new(60, growing());
    taught(&mut scene);
    scene.arrive(1, 4, 40, 60);
    let (slot, _) = scene.seats.pop_first().expect("placed");
    let opened = |scene: &Scene| scene.brain.status().sessions[0].pages_used;
    assert!(opened(&scene) < 16, "{}", opened(&scene));
    let mut slot = slot;
    for round in 1..=2 {
        let mut preempted = report(1, Role::Mixed);
        preempted.closed.push(closed(slot, CloseReason::Preempted));
        scene.tell(said(preempted));
        slot = *scene.seats.first_key_value().expect("placed again").0;
        assert_eq!(
            scene.seats.pop_first().expect("placed again").1.request,
            1,
            "{round}"
        );
    }
    assert_eq!(opened(&scene), 16, "prompt and longest answer");
}

/// Pages promised to a request of four prompt tokens and at most 236 of answer, after 40 answers
/// of which so many each were cut off at their limit of four.
fn promised_after(answers: u64) -> u64 {
    let mut scene = Scene::new(400, growing());
    (0..answers).for_each(|id| scene.arrive(1_000 + id, 4, 4, 4));
    while scene.ended < usize::try_from(answers).expect("few") {
        scene.step();
    }
    scene.arrive(1, 4, 236, 236);
    scene.brain.status().sessions[0].pages_used
}

#[test]
fn lengths_are_known_after_enough_answers_and_who_is_at_its_limit_says_nothing_of_them() {
    assert_eq!(promised_after(31), 60, "prompt and longest answer");
    // Half of all answers have 150 tokens or more, if nobody says otherwise.
    let promised = promised_after(40);
    assert!((12..60).contains(&promised), "{promised}");
}
