//! Who is refused at once could not have been in time in any order of work: against all orders and
//! all places of what waits, by trying them. Where workers are equal nobody else is taken either.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "only tests call this; the lint knows test functions only"
)]

use std::collections::{BTreeMap, VecDeque};

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    cost::Timings,
    event::{CloseReason, Event},
    fleet::{Role, WorkerFacts},
    ids::{SessionId, SlotId},
    policy::{PolicyConfig, Refuse},
    request::{PrefixMark, RejectReason, Slo},
    units::{Micros, Tokens},
};
use proptest::prelude::*;

use crate::support::{
    cases, closed, joined,
    policy::{arrive, computes, fleet, gpu, policy},
    report, request, said, worker,
};

/// What waits is tried in every order, so no more than that.
const TRIED: usize = 3;

/// A worker that does one prompt after the other, exactly as fast as it says.
#[derive(Debug)]
struct Bench {
    token_us: u64,
    bound: VecDeque<(SlotId, u64)>,
    /// When the first of them is done.
    ends: u64,
}

impl Bench {
    /// Until all that is bound is done.
    fn busy_us(&self, now: u64) -> u64 {
        let rest = self.bound.iter().skip(1);
        let rest: u64 = rest.map(|&(_, tokens)| tokens * self.token_us).sum();
        self.bound.front().map_or(0, |_| self.ends - now + rest)
    }
}

#[derive(Debug)]
struct Shop {
    brain: Brain,
    now: u64,
    benches: Vec<Bench>,
    waiting: BTreeMap<u64, u64>,
    unmeetable: Vec<u64>,
}

impl Shop {
    fn new(speeds: &[u64]) -> Self {
        let policy = PolicyConfig {
            refuse: Refuse::Early,
            bind_ahead: Micros(0),
            ..policy()
        };
        let bench = |&token_us| Bench {
            token_us,
            bound: VecDeque::new(),
            ends: 0,
        };
        let mut shop = Self {
            brain: Brain::new(BrainConfig {
                policy,
                ..BrainConfig::default()
            }),
            now: 0,
            benches: speeds.iter().map(bench).collect(),
            waiting: BTreeMap::new(),
            unmeetable: Vec::new(),
        };
        for (session, &token_us) in (1..).zip(speeds) {
            let facts = WorkerFacts {
                num_seqs_max: 1_000,
                batch_tokens_max: Tokens(8_192),
                timings: Timings {
                    compute_us_per_token: f64::from(u32::try_from(token_us).expect("small")),
                    ..Timings::instant()
                },
                ..worker(Role::Mixed, 1 << 20)
            };
            shop.tell(joined(session, facts));
        }
        shop
    }

    fn tell(&mut self, event: Event) {
        for action in self.brain.handle(Micros(self.now), event) {
            match action {
                Action::Open { seat, sequence, .. } => {
                    let tokens = self.waiting.remove(&sequence.request.0);
                    let tokens = tokens.expect("it waited");
                    let at = usize::try_from(seat.session.0).expect("small") - 1;
                    let bench = &mut self.benches[at];
                    if bench.bound.is_empty() {
                        bench.ends = self.now + tokens * bench.token_us;
                    }
                    bench.bound.push_back((seat.slot, tokens));
                }
                Action::Reject { sequence, why, .. } => {
                    self.waiting.remove(&sequence.request.0);
                    if why == RejectReason::Unmeetable {
                        self.unmeetable.push(sequence.request.0);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn arrive(&mut self, id: u64, tokens: u32, ttft: Option<u64>) {
        let mut facts = request(id, tokens, 1);
        facts.slo = Slo {
            ttft: ttft.map(Micros),
            tpot: None,
        };
        self.waiting.insert(id, u64::from(tokens));
        self.tell(Event::RequestArrived(facts));
    }

    /// The first prompt of a worker is done, and with it its answer.
    fn finish(&mut self, at: usize) {
        let bench = &mut self.benches[at];
        let (slot, _) = bench.bound.pop_front().expect("something is bound");
        if let Some(&(_, next)) = bench.bound.front() {
            bench.ends = self.now + next * bench.token_us;
        }
        let left: u64 = bench.bound.iter().map(|&(_, tokens)| tokens).sum();
        let mut step = report(at as u64 + 1, Role::Mixed);
        step.tokens = vec![(slot, Tokens(1))];
        step.closed = vec![closed(slot.0, CloseReason::Length)];
        step.load.prefill_tokens_queued = Tokens(u32::try_from(left).expect("small"));
        self.tell(said(step));
    }

    fn wait(&mut self, time: u64) {
        let until = self.now + time;
        loop {
            let busy = (0..self.benches.len()).filter(|&at| !self.benches[at].bound.is_empty());
            let done = busy.min_by_key(|&at| self.benches[at].ends);
            let done = done.map(|at| (self.benches[at].ends, Some(at)));
            let woken = self.brain.next_wake().map(|at| (at.0.max(self.now), None));
            let next = done.into_iter().chain(woken).min_by_key(|&(at, _)| at);
            match next.filter(|&(at, _)| at <= until) {
                None => break,
                Some((at, Some(bench))) => {
                    self.now = at;
                    self.finish(bench);
                }
                Some((at, None)) => {
                    self.now = at;
                    self.tell(Event::Woke);
                }
            }
        }
        self.now = until;
    }

    /// From now to the first token of one more prompt, in the best of all orders.
    fn best(&self, tokens: u64) -> u64 {
        let mut busy: Vec<_> = self.benches.iter().map(|b| b.busy_us(self.now)).collect();
        let mut left: Vec<u64> = self.waiting.values().copied().take(TRIED).collect();
        self.best_of(&mut busy, &mut left, tokens)
    }

    fn best_of(&self, busy: &mut [u64], left: &mut Vec<u64>, tokens: u64) -> u64 {
        let ends = |at: usize, busy: &[u64]| busy[at] + tokens * self.benches[at].token_us;
        let now = (0..busy.len()).map(|at| ends(at, busy)).min();
        let mut best = now.expect("there is a worker");
        for place in 0..left.len() {
            let before = left.remove(place);
            for at in 0..busy.len() {
                busy[at] += before * self.benches[at].token_us;
                best = best.min(self.best_of(busy, left, tokens));
                busy[at] -= before * self.benches[at].token_us;
            }
            left.insert(place, before);
        }
        best
    }
}

/// Milliseconds since the last one, tokens, target in milliseconds.
fn arrivals() -> impl Strategy<Value = Vec<(u64, u32, Option<u64>)>> {
    let one = (0..40_u64, 1..60_u32, prop::option::of(1..250_u64));
    prop::collection::vec(one, 1..30)
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn who_is_refused_at_once_could_not_be_in_time_in_any_order(
        arrivals in arrivals(),
        speeds in prop::collection::vec(prop::sample::select(vec![1_000, 2_000, 5_000_u64]), 1..4),
    ) {
        let mut shop = Shop::new(&speeds);
        let is_even = speeds.windows(2).all(|two| two[0] == two[1]);
        for (id, (gap, tokens, ttft)) in (1..).zip(arrivals) {
            shop.wait(gap * 1_000);
            let ttft = ttft.map(|ttft| ttft * 1_000);
            let best = shop.best(u64::from(tokens));
            shop.arrive(id, tokens, ttft);
            let is_refused = shop.unmeetable.contains(&id);
            let is_hopeless = ttft.is_some_and(|ttft| best > ttft);
            prop_assert!(is_hopeless || !is_refused, "{} us would do: {:?}", best, shop);
            prop_assert!(is_refused || !is_hopeless || !is_even, "{} us at best: {:?}", best, shop);
        }
    }
}

#[test]
fn what_anybody_has_cached_is_not_in_the_way() {
    let early = PolicyConfig {
        refuse: Refuse::Early,
        ..policy()
    };
    let timings = Timings::h100_8b();
    let time = |tokens| timings.prefill_us(Tokens(tokens)).0;
    // 3,840 of 4,000 tokens are cached; a step more for the rest.
    let just = time(4_000) - time(3_840) + time(1);
    for (ttft, is_refused) in [(just, false), (just - 1, true)] {
        let workers = [gpu(Role::Prefill, 400_000), gpu(Role::Prefill, 400_000)];
        let mut brain = fleet(early.clone(), &workers);
        for session in [1, 2] {
            let mut kept = report(session, Role::Prefill);
            kept.stored = vec![77];
            brain.handle(Micros(0), said(kept));
        }
        let session = SessionId(1);
        brain.handle(Micros(0), Event::SessionLost { session });
        let mut facts = request(1, 4_000, 100);
        facts.slo.ttft = Some(Micros(ttft));
        let (pages, hash) = (240, 77);
        facts.prefix = [PrefixMark { pages, hash }].into();
        let actions = brain.handle(Micros(0), Event::RequestArrived(facts));
        let told = actions.iter().any(is_unmeetable);
        assert_eq!(told, is_refused, "{ttft} us: {actions:?}");
    }
}

/// Prompts take longer beside one that decodes; it may end at its next token.
#[test]
fn who_decodes_need_not_be_in_the_way() {
    let early = PolicyConfig {
        refuse: Refuse::Early,
        ..policy()
    };
    let time = |tokens| Timings::h100_8b().prefill_us(Tokens(tokens)).0;
    let both = time(8_000) + time(1_000);
    for (ttft, is_refused) in [(both, false), (both - 1, true)] {
        let mut brain = fleet(early.clone(), &[gpu(Role::Mixed, 400_000)]);
        arrive(&mut brain, 0, 1, 100);
        let mut began = report(1, Role::Mixed);
        began.tokens = vec![(SlotId(0), Tokens(1))];
        brain.handle(Micros(0), said(began));
        assert_eq!(computes(&arrive(&mut brain, 0, 2, 8_000)), [(2, 1)]);
        let mut facts = request(3, 1_000, 100);
        facts.slo.ttft = Some(Micros(ttft));
        let actions = brain.handle(Micros(0), Event::RequestArrived(facts));
        let told = actions.iter().any(is_unmeetable);
        assert_eq!(told, is_refused, "{ttft} us: {actions:?}");
    }
}

fn is_unmeetable(action: &Action) -> bool {
    let unmeetable = RejectReason::Unmeetable;
    matches!(action, Action::Reject { why, .. } if *why == unmeetable)
}
