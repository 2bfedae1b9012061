//! The queue against the textbook: whatever comes, ends and is placed, in the same order.

use std::collections::BTreeMap;

use dopd_core::{
    brain::BrainConfig,
    policy::{Order, PolicyConfig, Refuse},
    request::{RequestFacts, Slo},
    units::{Micros, Tokens},
};
use proptest::prelude::*;

use crate::support::{
    self, cases,
    line::{Line, millis},
    naive::Naive,
    request,
};

#[derive(Clone, Debug)]
enum Op {
    Arrive {
        tokens: u32,
        priority: i32,
        tenant: u64,
        weight: u32,
        ttft: Option<u64>,
    },
    Finish {
        tokens: u32,
    },
    Wait {
        ms: u64,
    },
    Cancel {
        nth: usize,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    let weight = prop::sample::select(vec![0, 1, 1, 1, 2, 10, u32::MAX]);
    let tokens = prop_oneof![4 => 1..200_u32, 1 => 200..5_000_u32];
    let ttft = prop::option::weighted(0.5, prop_oneof![0..400_u64, 400..20_000_u64]);
    let arrive = (tokens, -1..2_i32, 0..4_u64, weight, ttft);
    prop_oneof![
        6 => arrive.prop_map(|(tokens, priority, tenant, weight, ttft)| Op::Arrive {
            tokens,
            priority,
            tenant,
            weight,
            ttft,
        }),
        4 => (1..400_u32).prop_map(|tokens| Op::Finish { tokens }),
        2 => prop_oneof![4 => 0..500_u64, 1 => 2_000..9_000_u64].prop_map(|ms| Op::Wait { ms }),
        1 => (0..100_usize).prop_map(|nth| Op::Cancel { nth }),
    ]
}

/// Brain and textbook, side by side.
struct Both {
    line: Line,
    naive: Naive,
    facts: BTreeMap<u64, RequestFacts>,
    seats: usize,
    checked: usize,
}

impl Both {
    fn new(policy: PolicyConfig, seats: u32) -> Self {
        let config = BrainConfig {
            policy: policy.clone(),
            ..support::plain()
        };
        Self {
            line: Line::new(config, seats),
            naive: Naive::new(policy),
            facts: BTreeMap::new(),
            seats: seats as usize,
            checked: 0,
        }
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Arrive {
                tokens,
                priority,
                tenant,
                weight,
                ttft,
            } => {
                let id = self.facts.len() as u64;
                let facts = RequestFacts {
                    priority,
                    tenant,
                    weight,
                    slo: Slo {
                        ttft: ttft.map(millis),
                        tpot: None,
                    },
                    ..request(id, tokens, 1_000)
                };
                self.facts.insert(id, facts.clone());
                self.naive.arrive(&facts);
                self.line.arrive(facts);
            }
            Op::Finish { tokens } => {
                if let Some(&(_, id)) = self.line.running.front() {
                    self.naive.answer(&self.facts[&id], tokens);
                    self.line.finish(tokens);
                }
            }
            Op::Wait { ms } => {
                self.line.wait(millis(ms));
                self.naive.now = self.line.now.0;
            }
            Op::Cancel { nth } => {
                let id = (nth as u64) % (self.facts.len() as u64).max(1);
                // Who runs is left to run: its seat is closed in two steps.
                if !self.line.placed.contains(&id) {
                    self.naive.leave(id);
                    self.line.cancel(id);
                }
            }
        }
    }

    /// The textbook fills the seats that the brain filled.
    fn compare(&mut self) {
        while self.checked < self.line.placed.len() {
            let wanted = self.naive.place();
            assert_eq!(Some(self.line.placed[self.checked]), wanted);
            self.checked += 1;
        }
        if self.line.running.len() < self.seats {
            assert_eq!(self.naive.place(), None, "somebody waits at a free seat");
        }
    }
}

fn run(policy: PolicyConfig, seats: u32, ops: &[Op]) {
    let mut both = Both::new(policy, seats);
    for op in ops {
        both.act(op);
        both.compare();
    }
    while both.line.running.front().is_some() {
        both.act(&Op::Finish { tokens: 3 });
        both.compare();
    }
    let status = both.line.brain.status();
    assert_eq!((status.requests_waiting, status.tokens_waiting), (0, 0));
    let ended = both.line.placed.len();
    assert!(
        ended <= both.facts.len(),
        "{ended} of {} were placed",
        both.facts.len()
    );
}

fn policy(quantum: u32, demote: bool, share_tenants: bool) -> PolicyConfig {
    PolicyConfig {
        order: Order::Aged,
        demote,
        share_tenants,
        share_quantum: Tokens(quantum),
        refuse: Refuse::Never,
        late_max: Micros::from_millis(3_000),
        ..PolicyConfig::plain()
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn brain_places_in_the_order_of_the_textbook(
        ops in prop::collection::vec(any_op(), 1..150),
        quantum in prop::sample::select(vec![0, 1, 100, 8_192]),
        demote in any::<bool>(),
        share in prop::bool::weighted(0.8),
        seats in 1..4_u32,
    ) {
        run(policy(quantum, demote, share), seats, &ops);
    }
}
