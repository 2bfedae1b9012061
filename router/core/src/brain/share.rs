//! What tenants get of each other: a count of the work done for each, by its weight.
//!
//! A virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).
//! A prompt is charged when it is placed, an answer token when it is made; among those who wait in
//! one priority, the tenant goes first that was charged least. Who comes back after it had nothing
//! that waited is lifted to one `share_quantum` below the one that goes first of those with whom it
//! competes: idle time earns no more than that, and who asks for little finds its turn at once. Who
//! is alone is never held back.
//!
//! Counts that are within one `share_quantum` of each other are equal, and the order of prompts
//! rules over all of these tenants: else a thousand tenants with one request each would be served
//! in turn, long prompts before short ones.
//!
//! **Bound.** Between two tenants that have something to wait for all the time, service by weight
//! differs by at most two quanta and the larger of both tenants' longest burst: a prompt, and the
//! answer tokens of what they have running. (Each is only ever placed while its count is the least,
//! to a quantum; what it is charged after that is its burst.)
//!
//! **Beyond** [`TENANTS_MAX`] tenants with requests, newcomers share [`CROWDS`] accounts of weight
//! 1 by their hash. A tenant without requests is forgotten when its place is needed, who has been
//! charged least first.

use std::collections::{BTreeMap, BTreeSet};

use slab::Slab;

use crate::{policy::PolicyConfig, units::Tokens};

/// Tenants with an account of their own.
pub(super) const TENANTS_MAX: usize = 1_024;

/// Accounts of all others.
const CROWDS: u64 = 16;

/// Price of an answer token, in prompt tokens.
pub(super) const ANSWER_PRICE: u32 = 2;

/// Parts of a token, so that no weight makes work free.
const PARTS: u128 = 1 << 32;

/// One tenant, or a crowd of them.
#[derive(Clone, Copy, Debug)]
struct Account {
    tenant: Option<u64>,
    weight: u32,
    /// Charged so far, by weight.
    service: u128,
    /// That in quanta: asked for at every look at the queue, and dividing is slow.
    turn: u128,
    /// Sequences that are not ended.
    alive: usize,
    waiting: usize,
    /// Of these, known to be late.
    late: usize,
    tokens_waiting: u64,
}

impl Account {
    /// What waits, by weight.
    fn backlog(&self) -> u128 {
        by_weight(u128::from(self.tokens_waiting), self.weight)
    }
}

fn by_weight(tokens: u128, weight: u32) -> u128 {
    let parts = tokens * PARTS;
    // Nearly all weigh 1, and to divide so long a number takes long.
    if weight <= 1 {
        parts
    } else {
        parts.div_ceil(u128::from(weight))
    }
}

#[derive(Debug)]
pub(super) struct Share {
    is_on: bool,
    quantum: u128,
    /// What idle time earns at most.
    credit: u128,
    accounts: Slab<Account>,
    by_tenant: BTreeMap<u64, usize>,
    crowds: BTreeMap<u64, usize>,
    /// Tenants without requests, by service.
    idle: BTreeSet<(u128, usize)>,
    /// Who waits, by backlog.
    backlogs: BTreeSet<(u128, usize)>,
    /// Service of the last one placed, when it was: where who comes alone begins.
    floor: u128,
}

impl Share {
    pub(super) fn new(policy: &PolicyConfig) -> Self {
        let quantum = u128::from(policy.share_quantum.0) * PARTS;
        Self {
            is_on: policy.share_tenants,
            quantum: quantum.max(1),
            credit: quantum,
            accounts: Slab::new(),
            by_tenant: BTreeMap::new(),
            crowds: BTreeMap::new(),
            idle: BTreeSet::new(),
            backlogs: BTreeSet::new(),
            floor: quantum,
        }
    }

    /// A sequence of a tenant arrives. Returns the account that pays.
    pub(super) fn enter(&mut self, tenant: u64, weight: u32) -> usize {
        let account = self.account_of(if self.is_on { tenant } else { 0 });
        if let Some(found) = self.accounts.get_mut(account) {
            if found.alive == 0 {
                self.idle.remove(&(found.service, account));
            }
            found.alive += 1;
            let backlog = found.backlog();
            if found.tenant.is_some() && self.is_on {
                found.weight = weight.max(1);
            }
            let after = found.backlog();
            if found.waiting > 0 && backlog != after {
                self.backlogs.remove(&(backlog, account));
                self.backlogs.insert((after, account));
            }
        }
        account
    }

    /// The account that a tenant has, if it has one of its own or would share one.
    pub(super) fn find(&self, tenant: u64) -> Option<usize> {
        let tenant = if self.is_on { tenant } else { 0 };
        let crowd = || self.crowds.get(&(tenant % CROWDS));
        self.by_tenant.get(&tenant).or_else(crowd).copied()
    }

    fn account_of(&mut self, tenant: u64) -> usize {
        if let Some(&account) = self.by_tenant.get(&tenant) {
            return account;
        }
        if self.by_tenant.len() >= TENANTS_MAX {
            let Some((_, account)) = self.idle.pop_first() else {
                let crowd = tenant % CROWDS;
                if let Some(&account) = self.crowds.get(&crowd) {
                    return account;
                }
                let account = self.open(None);
                self.crowds.insert(crowd, account);
                return account;
            };
            if let Some(Account {
                tenant: Some(of), ..
            }) = self.accounts.try_remove(account)
            {
                self.by_tenant.remove(&of);
            }
        }
        let account = self.open(Some(tenant));
        self.by_tenant.insert(tenant, account);
        account
    }

    fn open(&mut self, tenant: Option<u64>) -> usize {
        self.accounts.insert(Account {
            tenant,
            weight: 1,
            service: 0,
            turn: 0,
            alive: 0,
            waiting: 0,
            late: 0,
            tokens_waiting: 0,
        })
    }

    /// A sequence ended.
    pub(super) fn leave(&mut self, account: usize) {
        let Some(found) = self.accounts.get_mut(account) else {
            return;
        };
        found.alive = found.alive.saturating_sub(1);
        if found.alive == 0 && found.tenant.is_some() {
            self.idle.insert((found.service, account));
        }
    }

    /// A sequence begins to wait; `least`: service of the one that goes
    /// first of those with whom it competes.
    pub(super) fn waits(&mut self, account: usize, tokens: Tokens, least: Option<u128>) {
        let below = least.map(|least| least.saturating_sub(self.credit));
        let floor = below.unwrap_or(self.floor);
        let Some(found) = self.accounts.get_mut(account) else {
            return;
        };
        if found.waiting == 0 {
            found.service = found.service.max(floor);
            found.turn = found.service / self.quantum;
        } else {
            self.backlogs.remove(&(found.backlog(), account));
        }
        found.waiting += 1;
        found.tokens_waiting = found.tokens_waiting.saturating_add(u64::from(tokens.0));
        self.backlogs.insert((found.backlog(), account));
    }

    /// It waits no longer.
    pub(super) fn waits_no_longer(&mut self, account: usize, tokens: Tokens, was_late: bool) {
        let Some(found) = self.accounts.get_mut(account) else {
            return;
        };
        self.backlogs.remove(&(found.backlog(), account));
        found.waiting = found.waiting.saturating_sub(1);
        found.late = found.late.saturating_sub(usize::from(was_late));
        found.tokens_waiting = found.tokens_waiting.saturating_sub(u64::from(tokens.0));
        if found.waiting > 0 {
            self.backlogs.insert((found.backlog(), account));
        }
    }

    /// One that waits is late.
    pub(super) fn is_late(&mut self, account: usize) {
        if let Some(found) = self.accounts.get_mut(account) {
            found.late += 1;
        }
    }

    /// A prompt of so many tokens was placed.
    pub(super) fn placed(&mut self, account: usize, tokens: Tokens) {
        self.floor = self.floor.max(self.service(account));
        self.charge(account, tokens, 1);
    }

    /// So many tokens of an answer were made.
    pub(super) fn answered(&mut self, account: usize, tokens: Tokens) {
        self.charge(account, tokens, ANSWER_PRICE);
    }

    fn charge(&mut self, account: usize, tokens: Tokens, price: u32) {
        if let Some(found) = self.accounts.get_mut(account).filter(|_| self.is_on) {
            let price = u128::from(tokens.0) * u128::from(price);
            found.service = found.service.saturating_add(by_weight(price, found.weight));
            found.turn = found.service / self.quantum;
        }
    }

    /// What an account was charged, by weight. In 1 / 2^32 of a token at weight 1.
    pub(super) fn service(&self, account: usize) -> u128 {
        self.accounts.get(account).map_or(0, |found| found.service)
    }

    /// Service with a prompt of so many tokens more.
    pub(super) fn with_prompt(&self, account: usize, service: u128, tokens: Tokens) -> u128 {
        let weight = self.accounts.get(account).map_or(1, |found| found.weight);
        let more = by_weight(u128::from(tokens.0), weight);
        service.saturating_add(if self.is_on { more } else { 0 })
    }

    /// Service in quanta: what tenants are ordered by.
    pub(super) const fn turn_at(&self, service: u128) -> u128 {
        service / self.quantum
    }

    /// The same of an account as it is.
    pub(super) fn turn(&self, account: usize) -> u128 {
        self.accounts.get(account).map_or(0, |found| found.turn)
    }

    /// Sequences of an account that wait.
    pub(super) fn waiting(&self, account: usize) -> usize {
        self.accounts.get(account).map_or(0, |found| found.waiting)
    }

    /// Those that are not known to be late.
    pub(super) fn in_time(&self, account: usize) -> usize {
        let found = self.accounts.get(account);
        found.map_or(0, |found| found.waiting - found.late)
    }

    /// Who has most waiting of those who share, and how much that is with so many tokens less.
    pub(super) fn largest_backlog(&self) -> Option<usize> {
        self.backlogs.last().map(|&(_, account)| account)
    }

    /// What waits of an account by its weight, without so many tokens.
    pub(super) fn backlog_without(&self, account: usize, less: u64) -> u128 {
        let found = self.accounts.get(account);
        found.map_or(0, |found| {
            let tokens = found.tokens_waiting.saturating_sub(less);
            by_weight(u128::from(tokens), found.weight)
        })
    }

    /// What would wait of a tenant by its weight with so many tokens more.
    pub(super) fn backlog_with(&self, tenant: u64, weight: u32, more: u64) -> u128 {
        let account = self
            .find(tenant)
            .and_then(|account| self.accounts.get(account));
        let before = account.map_or(0, |found| found.tokens_waiting);
        by_weight(u128::from(before.saturating_add(more)), weight)
    }

    /// Accounts that are kept.
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> Share {
        Share::new(&PolicyConfig {
            share_tenants: true,
            ..PolicyConfig::plain()
        })
    }

    #[test]
    fn who_has_no_requests_makes_room_and_nobody_else() {
        let mut share = share();
        let first = share.enter(0, 1);
        share.leave(first);
        assert_eq!(share.enter(0, 1), first);
        share.charge(first, Tokens(7), 1);
        for tenant in 1..=TENANTS_MAX as u64 {
            let account = share.enter(tenant, 1);
            share.charge(account, Tokens(9), 1);
        }
        // The last one shares an account, since all others have requests.
        assert_eq!((share.find(0), share.len()), (Some(first), TENANTS_MAX + 1));
        assert_eq!(share.service(first), 7 * PARTS);
        share.leave(first);
        let newcomer = share.enter(5_000, 1);
        assert_eq!(
            (share.find(5_000), share.len()),
            (Some(newcomer), TENANTS_MAX + 1)
        );
        assert_eq!(share.service(newcomer), 0);
        assert!(!share.by_tenant.contains_key(&0), "forgotten");
    }

    #[test]
    fn a_new_weight_counts_for_what_waits_already() {
        let mut share = share();
        let [one, other] = [1, 2].map(|tenant| share.enter(tenant, 1));
        share.waits(one, Tokens(100), None);
        share.waits(other, Tokens(150), None);
        assert_eq!(share.largest_backlog(), Some(other));
        share.enter(2, 10);
        assert_eq!(share.largest_backlog(), Some(one));
        share.waits_no_longer(other, Tokens(150), false);
        share.waits_no_longer(one, Tokens(100), false);
        assert_eq!(share.largest_backlog(), None);
    }
}
