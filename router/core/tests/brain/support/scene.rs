//! Random events for a [`Fleet`], in any order, until everything has come to rest.

use std::sync::Arc;

use dopd_core::{
    brain::BrainConfig,
    cost::Timings,
    event::{CloseReason, Event, Suspicion},
    fleet::{Role, WorkerFacts},
    policy::Reserve,
    request::PrefixMark,
    units::Micros,
};
use proptest::prelude::*;

use super::{NEVER, PAGE_SIZE, fleet::Fleet, request, worker, worker::Worker};

/// Mostly pairs.
const ROLES: [Role; 5] = [
    Role::Prefill,
    Role::Decode,
    Role::Mixed,
    Role::Prefill,
    Role::Decode,
];

/// What may happen. `a` and `b` choose among what is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) kind: u8,
    pub(crate) a: u8,
    pub(crate) b: u8,
}

/// Kinds of ops.
const KINDS: u8 = 44;

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Faults {
    None,
    All,
}

pub(crate) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (0..KINDS, any::<u8>(), any::<u8>()).prop_map(|(kind, a, b)| Op { kind, a, b });
    prop::collection::vec(op, 50..400)
}

/// A model so small that what is asked of it takes milliseconds, as does the time between events.
fn small() -> Timings {
    Timings {
        step_prefill_us: 200.0,
        step_decode_us: 100.0,
        weights_us: 100.0,
        compute_us_per_token: 50.0,
        context_us_per_token: 0.5,
        batch_us_per_seq: 20.0,
        mixed_penalty_ratio: 0.2,
        handoff_bytes_per_s: 20e6,
        handoff_fixed_us: 100.0,
        ..Timings::instant()
    }
}

/// Five labels without step times, five with those of a GPU, beside which all that happens here
/// takes no time, five with those of a small model.
fn worker_of(role: u8, pages: u32) -> WorkerFacts {
    WorkerFacts {
        timings: match role / 5 {
            0 => Timings::instant(),
            1 => Timings::h100_8b(),
            _ => small(),
        },
        ..worker(ROLES[usize::from(role) % 5], pages)
    }
}

/// What a run begins with.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) config: BrainConfig,
    /// As [`worker_of`] reads them.
    pub(crate) roles: Vec<u8>,
    /// Between two ops pass up to 31 times so many microseconds.
    pub(crate) pace: u64,
}

pub(crate) fn run(scene: &Scene, ops: &[Op], faults: Faults) -> Fleet {
    let mut fleet = Fleet::new(scene.config.clone());
    for (pages, &role) in (14..).step_by(4).zip(&scene.roles) {
        fleet.join(worker_of(role, pages));
    }
    if scene.config.policy.reserve == Reserve::FuturePeak {
        teach(&mut fleet);
    }
    for (number, op) in ops.iter().enumerate() {
        fleet.now = fleet.now.plus(Micros(u64::from(op.b) / 8 * scene.pace));
        normal(&mut fleet, number as u64, *op);
        if faults == Faults::All {
            fault(&mut fleet, *op);
        }
    }
    settle(&mut fleet);
    fleet
}

/// So many short answers that lengths are known, and longer ones a surprise.
fn teach(fleet: &mut Fleet) {
    const ANSWERS: u64 = 34;
    for id in 1_000_000..1_000_000 + ANSWERS {
        fleet.arrive(request(id, 1, 12));
        for _ in 0..ROUNDS_MAX {
            round(fleet, Some(0));
            let mut answers = fleet.streams.values();
            if answers.all(|stream| stream.outcome.is_some()) {
                break;
            }
        }
    }
}

/// Index of the worker that `a` chooses.
fn pick(fleet: &Fleet, a: u8) -> Option<usize> {
    usize::from(a).checked_rem(fleet.workers.len())
}

fn normal(fleet: &mut Fleet, number: u64, Op { kind, a, b }: Op) {
    let Some(index) = pick(fleet, a) else { return };
    match kind {
        0..=2 => {
            let mut facts = request(number, 1 + u32::from(a) % 40, 1 + u32::from(b) % 20);
            facts.choices = 1 + u8::from(b > 230) * 2;
            facts.priority = i32::from(a % 3);
            (facts.tenant, facts.weight) = (u64::from(b % 4), u32::from(a % 5));
            facts.slo.ttft = (b % 3 == 0).then(|| Micros(u64::from(a) * u64::from(b) / 8));
            // From what no step meets to three steps of a GPU.
            facts.slo.tpot =
                (a % 4 == 3).then(|| Micros(u64::from(b) * if a > 127 { 80 } else { 4 }));
            if b % 16 == 7 {
                facts.deadline = fleet.now.plus(Micros(u64::from(a) * 200));
            }
            facts.order_key = (b % 32 == 9).then_some(i64::from(a) * 100);
            facts.prefix = marks(a % 3, facts.prompt_tokens.0);
            fleet.arrive(facts);
        }
        3 => (0..fleet.workers.len()).for_each(|index| fleet.obey(index)),
        4..=10 => fleet.obey(index),
        11..=17 => {
            let stops = (b > 240).then_some(u32::from(b % 4));
            let ends = fleet.workers[index].step(b % 4 > 0, stops);
            fleet.links.extend(ends);
        }
        18..=24 => fleet.deliver_report(index),
        25 => fleet.begin(index),
        26..=29 => fleet.deliver_end(true),
        30 => wake(fleet, b % 2 == 0),
        31 => fleet.workers[index].free_fences(),
        40 => fleet.workers[index].stores(hash_of(b % 3, u32::from(a) / 64)),
        41 => fleet.workers[index].evicts(hash_of(b % 3, u32::from(a) / 64)),
        42 => fleet.workers[index].slowness_percent = 25 + 3 * u32::from(b),
        43 => wake(fleet, true),
        _ => {}
    }
}

/// The prefix of so many pages and one of a few families.
fn hash_of(family: u8, pages: u32) -> u64 {
    u64::from(family) * 100 + u64::from(pages)
}

/// Of the full pages before the last token, four at most.
fn marks(family: u8, prompt: u32) -> Arc<[PrefixMark]> {
    let pages = 0..((prompt - 1) / PAGE_SIZE).min(4);
    let mark = |page| PrefixMark {
        pages: page + 1,
        hash: hash_of(family, page),
    };
    pages.map(mark).collect()
}

/// Time passes up to the next timer, or the timer's event comes early.
fn wake(fleet: &mut Fleet, is_due: bool) {
    if let Some(at) = fleet.brain.next_wake().filter(|&at| is_due && at < NEVER) {
        fleet.now = fleet.now.max(at);
    }
    fleet.tell(Event::Woke);
}

fn fault(fleet: &mut Fleet, Op { kind, a, b }: Op) {
    let streams = fleet.streams.len().max(1);
    let Some((&id, _)) = fleet.streams.iter().nth(usize::from(b) % streams) else {
        return;
    };
    let Some(index) = pick(fleet, a) else { return };
    match kind {
        32 => match b % 4 {
            0 => fleet.give_up(
                id,
                Event::RequestCancelled {
                    request: id.request,
                },
            ),
            1 => fleet.give_up(id, Event::SequenceStopped { sequence: id }),
            2 => {
                let to = fleet.workers[index].session;
                fleet.tell(Event::MoveRequested { sequence: id, to });
            }
            _ => fleet.deliver_late(),
        },
        33 if b > 100 => {
            let facts = fleet.workers[index].facts.clone();
            fleet.crash(index);
            fleet.join(facts);
        }
        33 if b > 60 => fleet.break_stream(index),
        33 if b > 40 => fleet.break_off(index),
        34 if b % 4 == 0 => fleet.suspect(index, Suspicion::Stuck),
        34 => fleet.suspect(index, Suspicion::Silent),
        35 => fleet.workers[index].take_foreign(u32::from(b) % 12),
        36 => {
            fleet.workers[index].pages_foreign = 0;
            fleet.workers[index].is_stuck = false;
        }
        37 if b > 128 => fleet.workers[index].evict(usize::from(b), CloseReason::Preempted),
        37 if b < 16 => fleet.workers[index].evict(usize::from(b), CloseReason::Error),
        38 if b % 2 == 0 => {
            fleet.links.pop_front();
        }
        38 => fleet.deliver_end(false),
        39 => {
            let worker = &mut fleet.workers[index];
            worker.is_draining = b > 230;
            worker.role = ROLES[usize::from(b) % 5];
            worker.role_epoch += 1;
        }
        _ => {}
    }
}

/// Rounds until everything must have ended; a run needs a few hundred.
const ROUNDS_MAX: usize = 5_000;

/// Everybody does what there is to do, and a millisecond passes.
fn round(fleet: &mut Fleet, stops: Option<u32>) {
    for index in 0..fleet.workers.len() {
        while !fleet.workers[index].inbox.is_empty() {
            fleet.obey(index);
        }
        fleet.workers[index].free_fences();
        let ends = fleet.workers[index].step(true, stops);
        fleet.links.extend(ends);
        while !fleet.workers[index].outbox.is_empty() {
            fleet.deliver_report(index);
        }
    }
    while !fleet.links.is_empty() {
        fleet.deliver_end(true);
    }
    fleet.now = fleet.now.plus(Micros::from_millis(1));
    if fleet.brain.next_wake().is_some_and(|at| at <= fleet.now) {
        fleet.tell(Event::Woke);
    }
}

/// No more faults: everybody does what there is to do, in turn, until it is quiet.
fn settle(fleet: &mut Fleet) {
    if fleet.workers.iter().all(|worker| worker.is_draining) {
        fleet.join(worker(Role::Mixed, 40));
    }
    for worker in &mut fleet.workers {
        worker.pages_foreign = 0;
        worker.is_stuck = false;
    }
    while !fleet.late.is_empty() {
        fleet.deliver_late();
    }
    for _ in 0..ROUNDS_MAX {
        round(fleet, None);
        let is_over = fleet
            .streams
            .values()
            .all(|stream| stream.outcome.is_some());
        if is_over && fleet.workers.iter().all(Worker::is_empty) {
            break;
        }
    }
    fleet.assert_clean();
    // Waits after refusals and for workers run out; nothing else is left to wait for.
    fleet.now = fleet.now.plus(Micros::from_millis(60_000));
    for _ in 0..ROUNDS_MAX {
        if fleet.brain.next_wake().is_some_and(|at| at <= fleet.now) {
            fleet.tell(Event::Woke);
        }
    }
    assert_eq!(
        fleet.brain.next_wake(),
        None,
        "a timer outlived its sequence"
    );
}
