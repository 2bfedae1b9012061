//! Nobody waits for ever, and long prompts get what they are owed.

use std::collections::BTreeMap;

use dopd_core::{
    brain::BrainConfig,
    fleet::Role,
    policy::{Order, PolicyConfig, Refuse},
    request::{RejectReason, RequestFacts, Slo},
    units::{Micros, Tokens},
};
use proptest::prelude::*;

use crate::support::{
    self, cases,
    line::{Line, millis},
    report, request, said,
};

/// See `brain/late.rs`.
const OWED: u64 = 64;

/// Prompts of an adversary: (tokens, priority, tenant, target in ms).
type Prompt = (u32, i32, u64, Option<u64>);

fn any_prompt() -> impl Strategy<Value = Prompt> {
    let ttft = prop::option::weighted(0.3, prop_oneof![Just(0), Just(100), Just(1_000_000)]);
    (1..60_u32, -3..2_i32, 0..5_u64, ttft)
}

struct Waits {
    tokens: u64,
    arrived: Micros,
    /// Tokens placed before it was overdue, and the tokens of all that waited from before it then,
    /// with its own.
    overdue: Option<(u64, u64)>,
}

/// One prompt at a time, a new one as often as the adversary likes: half again what can be served.
struct Siege {
    line: Line,
    waits: BTreeMap<u64, Waits>,
    /// Tokens of all that were placed.
    placed_tokens: u64,
    seen: usize,
    worst: f64,
}

impl Siege {
    fn new(policy: PolicyConfig) -> Self {
        let config = BrainConfig {
            policy,
            ..support::plain()
        };
        Self {
            line: Line::new(config, 1),
            waits: BTreeMap::new(),
            placed_tokens: 0,
            seen: 0,
            worst: 0.0,
        }
    }

    fn arrive(&mut self, id: u64, (tokens, priority, tenant, ttft): Prompt) {
        let facts = RequestFacts {
            priority,
            tenant,
            slo: Slo {
                ttft: ttft.map(millis),
                tpot: None,
            },
            ..request(id, tokens, 1)
        };
        let wait = Waits {
            tokens: u64::from(tokens),
            arrived: self.line.now,
            overdue: None,
        };
        self.waits.insert(id, wait);
        self.line.arrive(facts);
        self.look();
    }

    /// Checks whoever was placed.
    fn look(&mut self) {
        while let Some(&id) = self.line.placed.get(self.seen) {
            self.seen += 1;
            let one = self.waits.remove(&id);
            assert!(one.is_some(), "{id} was placed twice");
            if let Some(one) = one {
                self.check(&one);
                self.placed_tokens += one.tokens;
            }
        }
    }

    fn check(&mut self, one: &Waits) {
        if let Some((before, ahead)) = one.overdue {
            let others = self.placed_tokens - before;
            let bound = (OWED + 1) * ahead + 60;
            assert!(
                others <= bound,
                "{others} tokens of others, {bound} allowed"
            );
            self.worst = self.worst.max(others as f64 / bound as f64);
        }
    }

    /// The prompt that runs is done.
    fn serve(&mut self) {
        let mut ahead = 0;
        let wait = millis(5_000);
        for one in self.waits.values_mut() {
            ahead += one.tokens;
            let is_overdue = self.line.now.since(one.arrived) > wait;
            if one.overdue.is_none() && is_overdue {
                one.overdue = Some((self.placed_tokens, ahead));
            }
        }
        self.line.finish(1);
        self.look();
    }
}

fn policy() -> PolicyConfig {
    PolicyConfig {
        order: Order::Aged,
        demote: true,
        refuse: Refuse::Never,
        share_tenants: true,
        late_max: millis(3_000),
        ..PolicyConfig::plain()
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn everybody_goes_within_the_bound_whatever_arrives(
        prompts in prop::collection::vec(any_prompt(), 20..60),
        victims in prop::collection::vec((1..60_u32, 5..9_i32), 1..5),
    ) {
        let mut siege = Siege::new(policy());
        let mut id = 0;
        for &(tokens, priority) in &victims {
            siege.arrive(id, (tokens, priority, 9, None));
            id += 1;
        }
        // About 30 ms each, so that some 25 s pass after the victims are overdue.
        for &prompt in prompts.iter().cycle().take(1_500) {
            siege.arrive(id, prompt);
            id += 1;
            if id % 3 > 0 {
                let tokens = prompt.0;
                siege.line.wait(millis(u64::from(tokens)));
                siege.serve();
            }
        }
        // Whoever still waits has not waited beyond the bound.
        for one in std::mem::take(&mut siege.waits).values() {
            siege.check(one);
        }
        prop_assert!(siege.worst > 0.0, "nobody was overdue");
    }
}

#[test]
fn lowest_priority_goes_in_its_turn_under_a_flood() {
    let mut siege = Siege::new(policy());
    siege.arrive(5_000, (10, 0, 2, None));
    siege.arrive(0, (30, 9, 1, None));
    let mut served = 0;
    for id in 1..2_000 {
        siege.arrive(id, (10, 0, 2, None));
        siege.line.wait(millis(10));
        siege.serve();
        if siege.line.placed.contains(&0) {
            served = id;
            break;
        }
    }
    // Overdue after 5 s, which are 500 prompts; 64 x 30 tokens are 192 more.
    assert!((500..=700).contains(&served), "served after {served}");
    let mut baseline = Siege::new(PolicyConfig {
        demote: false,
        ..policy()
    });
    baseline.arrive(5_000, (10, 0, 2, None));
    baseline.arrive(0, (30, 9, 1, None));
    for id in 1..2_000 {
        baseline.arrive(id, (10, 0, 2, None));
        baseline.line.wait(millis(10));
        baseline.line.finish(1);
    }
    assert!(
        baseline.line.placed.iter().all(|&id| id > 0),
        "strict priority starves"
    );
}

/// Part of the long prompts, and of the others, that met their target under 1.4 times the load that
/// can be served, with so many places in the queue.
fn attainment(fair_ratio: f64, queue_requests_max: usize) -> (f64, f64) {
    let mut line = Line::new(
        BrainConfig {
            policy: PolicyConfig {
                fair_ratio,
                ..policy()
            },
            queue_requests_max,
            ..support::plain()
        },
        1,
    );
    let mut begun: BTreeMap<u64, (Micros, u32)> = BTreeMap::new();
    let (mut next, mut free_at, mut seen) = (0_u64, Micros(0), 0);
    let mut passed = [0_u32; 2];
    while line.now < millis(300_000) {
        // One of 10 is 100 tokens long, the others 20: 28 ms of work on average, every 20 ms.
        if line.now.0 >= next * 20_000 {
            let tokens = if next % 10 == 7 { 100 } else { 20 };
            begun.insert(next, (line.now, tokens));
            line.arrive(request(next, tokens, 1));
            next += 1;
        }
        while let Some(id) = line.placed.get(seen) {
            seen += 1;
            free_at = line.now.plus(millis(u64::from(begun[id].1)));
        }
        if line.now >= free_at
            && let Some(id) = line.finish(1)
        {
            let (arrived, tokens) = begun[&id];
            let is_in_time = line.now.since(arrived) <= millis(2_000);
            passed[usize::from(tokens > 20)] += u32::from(is_in_time);
        }
        line.wait(millis(1));
    }
    // Those that never went missed it.
    let (long, short) = (f64::from(passed[1]), f64::from(passed[0]));
    let all = next as f64;
    (long / (all / 10.0), short / (all * 0.9))
}

#[test]
fn long_prompts_are_given_what_they_are_owed() {
    // With few places most are refused as they come: those count as well.
    for places in [10_000, 80] {
        let (long_0, rest_0) = attainment(0.0, places);
        let (long_half, rest_half) = attainment(0.5, places);
        let (long_1, rest_1) = attainment(1.0, places);
        let text = format!("{long_0:.2} {long_half:.2} {long_1:.2}, rest {rest_0:.2} {rest_1:.2}");
        assert!(long_0 < 0.2 && rest_0 > 0.95, "{places}: {text}");
        // The ratio of the others' rate that they are owed, within a tenth.
        assert!(
            (long_half - 0.5 * rest_half).abs() < 0.1,
            "{places}: {text}"
        );
        assert!((long_1 - rest_1).abs() < 0.1, "{places}: {text}");
    }
}

#[test]
fn a_prompt_is_judged_by_its_first_token_alone() {
    let config = BrainConfig {
        policy: PolicyConfig {
            fair_ratio: 0.5,
            ..policy()
        },
        ..support::plain()
    };
    let mut line = with_books(config);
    line.arrive(request(500, 100, 50));
    let (seat, _) = line.running[0];
    for _ in 0..30 {
        let mut step = report(1, Role::Mixed);
        step.tokens = vec![(seat.slot, Tokens(1))];
        line.tell(said(step));
        line.wait(millis(1_000));
    }
    // Nothing is owed to the long ones: ageing counts 1,000 ms for the one, 100 for the other.
    line.placed.clear();
    line.arrive(request(600, 100, 1));
    line.wait(millis(500));
    line.arrive(request(601, 10, 1));
    assert_eq!(line.drain(), [601, 600]);
}

/// One worker, and books of 200 prompts that were in time, every tenth a long one.
fn with_books(config: BrainConfig) -> Line {
    let mut line = Line::new(config, 1);
    for id in 0..200 {
        let tokens = if id % 10 == 7 { 100 } else { 10 };
        line.arrive(request(id, tokens, 1));
        line.finish(1);
    }
    line
}

/// The same where long prompts are owed all that others get, and twelve may wait.
fn fair_line(refuse: Refuse) -> Line {
    let config = BrainConfig {
        policy: PolicyConfig {
            fair_ratio: 1.0,
            demote: false,
            refuse,
            ..policy()
        },
        queue_requests_max: 12,
        ..support::plain()
    };
    with_books(config)
}

/// A prompt that is refused because it waited has missed its target, whatever it is told.
#[test]
fn who_is_refused_for_waiting_missed_its_target() {
    use RejectReason::{DeadlineExceeded, Late, QueueFull};
    for why in [Late, DeadlineExceeded, QueueFull] {
        let mut line = fair_line(Refuse::Late);
        line.arrive(request(500, 10, 50));
        for id in 501..513 {
            let mut facts = request(id, 100, 1);
            match why {
                Late => facts.slo.ttft = Some(millis(500)),
                DeadlineExceeded => facts.deadline = line.now.plus(millis(4_000)),
                _ => {}
            }
            line.arrive(facts);
        }
        if why == QueueFull {
            for id in 700..712 {
                let tenant = 1 + id % 6;
                line.arrive(RequestFacts {
                    tenant,
                    ..request(id, 1, 1)
                });
            }
        }
        line.wait(millis(5_000));
        assert!(line.refused.iter().all(|&(_, told, _)| told == why));
        assert!(line.refused.len() >= 10, "{:?}", line.refused);
        line.drain();
        // Ten points owed bring the next long one forward to its arrival.
        line.arrive(request(800, 10, 1));
        line.arrive(request(600, 100, 1));
        line.wait(millis(500));
        line.arrive(request(601, 10, 1));
        assert_eq!(line.drain(), [800, 600, 601], "{why:?}");
    }
}

/// So has one that finds no place in the queue, but not one whose target no order could meet.
#[test]
fn who_is_turned_away_for_want_of_room_missed_its_target() {
    use RejectReason::{QueueFull, Unmeetable};
    for why in [QueueFull, Unmeetable] {
        let mut line = fair_line(Refuse::Early);
        // One runs, twelve wait; nobody is late, so none makes room.
        (500..513).for_each(|id| line.arrive(request(id, 10, 1)));
        for id in 520..532 {
            let mut facts = request(id, 100, 1);
            facts.slo.ttft = (why == Unmeetable).then_some(millis(50));
            line.arrive(facts);
        }
        let told = line.refused.iter().map(|&(id, told, _)| (id, told));
        assert!(
            told.eq((520..532).map(|id| (id, why))),
            "{:?}",
            line.refused
        );
        line.drain();
        line.arrive(request(800, 10, 1));
        line.arrive(request(600, 100, 1));
        line.wait(millis(500));
        line.arrive(request(601, 10, 1));
        let order = line.drain();
        let wanted = if why == QueueFull {
            [800, 600, 601]
        } else {
            [800, 601, 600]
        };
        assert_eq!(order, wanted, "{why:?}");
    }
}
