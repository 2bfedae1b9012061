//! The order of the queue as a textbook would write it: every rule by looking at all that wait. To
//! compare with; slow, without laziness, without an index.

use std::collections::BTreeMap;

use dopd_core::{policy::PolicyConfig, request::RequestFacts};

/// Parts of a token, as in the brain.
const PARTS: u128 = 1 << 32;
/// See `brain/late.rs`.
const OWED: u64 = 64;
/// See `brain/share.rs`.
const ANSWER_PRICE: u128 = 2;

#[derive(Clone, Debug)]
struct Waiting {
    facts: RequestFacts,
    arrived: u64,
    rank: i64,
    start_by: u64,
}

impl Waiting {
    fn tokens(&self) -> u64 {
        u64::from(self.facts.prompt_tokens.0)
    }
}

#[derive(Debug)]
pub(crate) struct Naive {
    policy: PolicyConfig,
    pub(crate) now: u64,
    /// By arrival.
    waiting: Vec<Waiting>,
    /// Charged to each tenant, by weight.
    service: BTreeMap<u64, u128>,
    weights: BTreeMap<u64, u32>,
    floor: u128,
    owed: u64,
}

impl Naive {
    /// For the order `Aged` without fairness to long prompts, a prompt of n tokens taking n ms.
    pub(crate) fn new(policy: PolicyConfig) -> Self {
        let floor = u128::from(policy.share_quantum.0) * PARTS;
        Self {
            policy,
            now: 0,
            waiting: Vec::new(),
            service: BTreeMap::new(),
            weights: BTreeMap::new(),
            floor,
            owed: 0,
        }
    }

    fn tenant(&self, facts: &RequestFacts) -> u64 {
        if self.policy.share_tenants {
            facts.tenant
        } else {
            0
        }
    }

    fn service(&self, facts: &RequestFacts) -> u128 {
        let tenant = self.tenant(facts);
        self.service.get(&tenant).copied().unwrap_or_default()
    }

    /// Among whom, and in which order: late, priority, turn, rank, arrival.
    fn key(&self, one: &Waiting) -> (bool, i32, u128, i64) {
        let quantum = (u128::from(self.policy.share_quantum.0) * PARTS).max(1);
        let is_late = self.policy.demote && one.start_by < self.now;
        let turn = self.service(&one.facts) / quantum;
        (is_late, one.facts.priority, turn, one.rank)
    }

    pub(crate) fn arrive(&mut self, facts: &RequestFacts) {
        let tenant = self.tenant(facts);
        if self
            .waiting
            .iter()
            .all(|one| self.tenant(&one.facts) != tenant)
        {
            let rivals = self.waiting.iter().enumerate();
            let rivals = rivals.filter(|(_, one)| one.facts.priority == facts.priority);
            let first = rivals.min_by_key(|&(at, one)| (self.key(one), at));
            let credit = u128::from(self.policy.share_quantum.0) * PARTS;
            let below = |service: u128| service.saturating_sub(credit);
            let floor = first.map_or(self.floor, |(_, one)| below(self.service(&one.facts)));
            let own = self.service.entry(tenant).or_default();
            *own = (*own).max(floor);
        }
        if self.policy.share_tenants {
            self.weights.insert(tenant, facts.weight.max(1));
        }
        let prefill = u64::from(facts.prompt_tokens.0) * 1_000;
        let ttft = facts
            .slo
            .ttft
            .map_or(self.policy.ttft.0.max(3 * prefill), |ttft| ttft.0);
        self.waiting.push(Waiting {
            facts: facts.clone(),
            arrived: self.now,
            rank: i64::try_from(self.now + 10 * prefill).expect("small"),
            start_by: (self.now + ttft).saturating_sub(prefill),
        });
    }

    pub(crate) fn leave(&mut self, id: u64) {
        self.waiting.retain(|one| one.facts.id.0 != id);
    }

    fn is_overdue(&self, one: &Waiting) -> bool {
        let wait = self.policy.ttft.0 + self.policy.late_max.0;
        self.policy.demote && self.now - one.arrived > wait
    }

    /// Takes the one that goes next, and charges its tenant.
    pub(crate) fn place(&mut self) -> Option<u64> {
        let oldest = self.waiting.first()?;
        let is_owed = self.is_overdue(oldest) && self.owed >= OWED * oldest.tokens();
        let next = (0..self.waiting.len()).min_by_key(|&at| (self.key(&self.waiting[at]), at))?;
        let one = self.waiting.remove(if is_owed { 0 } else { next });
        let is_anybody_overdue = self.waiting.first().is_some_and(|one| self.is_overdue(one));
        self.owed = if !is_anybody_overdue {
            0
        } else if is_owed {
            self.owed - OWED * one.tokens()
        } else {
            self.owed + one.tokens()
        };
        self.floor = self.floor.max(self.service(&one.facts));
        self.charge(&one.facts, u128::from(one.facts.prompt_tokens.0));
        Some(one.facts.id.0)
    }

    /// So many tokens of an answer were made.
    pub(crate) fn answer(&mut self, facts: &RequestFacts, tokens: u32) {
        self.charge(facts, u128::from(tokens) * ANSWER_PRICE);
    }

    fn charge(&mut self, facts: &RequestFacts, price: u128) {
        if self.policy.share_tenants {
            let tenant = self.tenant(facts);
            let weight = u128::from(self.weights.get(&tenant).copied().unwrap_or(1));
            *self.service.entry(tenant).or_default() += (price * PARTS).div_ceil(weight);
        }
    }
}
