//! Attached workers, with the orders in which placement looks at them.
//!
//! Every change goes through [`Workers::update`]; [`Workers::settle`] makes the orders (`orders`)
//! true again before they are looked at, once for all changes of a worker. So a decision costs
//! O(log n) however many workers are idle or full.

mod gone;
mod groups;
mod load;
mod orders;
mod residents;
mod seats;

use std::{collections::BTreeMap, sync::Arc};

use slab::Slab;

pub(super) use self::{
    orders::Task,
    residents::{Resident, Residents},
};

use self::{
    gone::Gone,
    groups::{Counted, Tally},
    orders::{Keys, Orders},
};
use super::{
    breaker::Breaker,
    lengths::Lengths,
    peak::{Ask, Stay},
    slots::Slots,
    status::BreakerState,
};
use crate::{
    cost::Learned,
    event::Suspicion,
    fleet::{Role, WorkerFacts, WorkerLoad},
    ids::{RequestId, SessionId, SlotId},
    policy::PolicyConfig,
    units::{Micros, Pages, Tokens},
};

/// One attached worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) session: SessionId,
    pub(super) facts: WorkerFacts,
    pub(super) role: Role,
    pub(super) role_epoch: u64,
    pub(super) is_draining: bool,
    pub(super) ejected: Option<Suspicion>,
    pub(super) load: WorkerLoad,
    pub(super) slots: Slots,
    pub(super) breaker: Breaker,
    /// Its breaker counts; see [`Workers::limit`].
    is_limited: bool,
    counted: Option<Counted>,
    /// The seat that shows whether it works again.
    pub(super) probe: Option<SlotId>,
    /// The request and the number of the suspects in trial that it computes.
    pub(super) suspects: Option<(RequestId, u32)>,
    /// Bystanders in trial that it computes.
    pub(super) bystanders: u32,
    /// It refused: nothing new until then.
    pub(super) backoff: Option<Micros>,
    /// Refusals in a row.
    pub(super) refusals: u32,
    /// Prompt tokens sent since the last report, and between that and the one before: reports may
    /// not show them yet.
    unseen: [u64; 2],
    /// What its seats are to its load.
    pub(super) residents: Residents,
    /// What its steps taught.
    pub(super) learned: Learned,
    /// By what was learnt last: a prompt of [`load::PROMPT`], and a step of one sequence.
    prompt_us: Micros,
    step_alone_us: Micros,
    /// When its prompts are computed, as predicted.
    busy_until: Micros,
    /// The same if nobody else decoded there: not before that, whatever comes.
    busy_least: Micros,
    /// Prompt tokens that it was given in the event at hand.
    pull: Option<u64>,
    rules: Arc<PolicyConfig>,
    keys: Keys,
    /// It changed since `keys` were true.
    is_stale: bool,
}

/// Workers that are asked for the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Labelled prefill or mixed: prompts go there.
    Prompts,
    /// Labelled decode: hand-offs go there, prompts only if nobody else can.
    Decode,
}

impl Group {
    const fn of(role: Role) -> Self {
        match role {
            Role::Prefill | Role::Mixed => Self::Prompts,
            Role::Decode => Self::Decode,
        }
    }
}

impl Worker {
    fn new(
        session: SessionId,
        facts: WorkerFacts,
        breaker: Breaker,
        rules: Arc<PolicyConfig>,
    ) -> Self {
        let page_size = facts.page_size;
        let mut worker = Self {
            breaker,
            is_limited: false,
            counted: None,
            probe: None,
            suspects: None,
            bystanders: 0,
            session,
            role: facts.role,
            facts,
            role_epoch: 0,
            is_draining: false,
            ejected: None,
            load: WorkerLoad::default(),
            slots: Slots::new(page_size, rules.peak_z),
            backoff: None,
            refusals: 0,
            unseen: [0; 2],
            residents: Residents::default(),
            learned: Learned::default(),
            prompt_us: Micros(0),
            step_alone_us: Micros(0),
            busy_until: Micros(0),
            busy_least: Micros(0),
            pull: None,
            rules,
            keys: Keys::default(),
            is_stale: false,
        };
        worker.predict();
        worker
    }

    /// Longest sequence, prompt and answer, that an empty worker of this kind holds.
    pub(super) fn len_max(&self) -> Tokens {
        if self.facts.num_seqs_max == 0 {
            return Tokens(0);
        }
        let pool = self
            .facts
            .pages_total
            .0
            .saturating_mul(self.facts.page_size.max(1));
        Tokens(pool.min(self.facts.model_len_max.0))
    }

    /// It would take new work.
    const fn is_standing(&self) -> bool {
        !self.is_draining && self.ejected.is_none()
    }

    /// May get new work, a wait after a refusal aside.
    const fn is_usable(&self) -> bool {
        self.is_standing() && !(self.is_limited && self.breaker.is_shut())
    }

    /// What decides how it counts among the workers.
    fn standing(&self) -> (Role, bool, bool, BreakerState, bool) {
        let (breaker, drains) = (&self.breaker, self.is_draining);
        let (state, is_shut) = (breaker.state(), breaker.is_shut());
        (self.role, self.is_standing(), drains, state, is_shut)
    }

    /// Pages of the pool that are the brain's to promise: neither fenced nor in the hands of
    /// somebody else. Cached ones are: they go when they are needed.
    fn pages_ours(&self) -> u64 {
        // Reports may be ahead of the account by a page a seat: the token that is being made.
        let known = self.slots.pages_held() + u64::from(self.slots.seats_used());
        let others = u64::from(self.load.pages_owned.0).saturating_sub(known);
        u64::from(self.facts.pages_total.0)
            .saturating_sub(u64::from(self.load.pages_fenced.0))
            .saturating_sub(others)
    }

    /// Pages that can be promised.
    pub(super) fn pages_room(&self) -> u64 {
        self.pages_ours().saturating_sub(self.slots.pages_used())
    }

    /// Pages that a sequence of this length takes.
    pub(super) const fn pages_of(&self, len: Tokens) -> Pages {
        len.pages(self.facts.page_size)
    }

    /// Tokens of a prompt on pages that it fills before its last token: those that the choices of a
    /// request compute once.
    pub(super) const fn shareable(&self, prompt: Tokens) -> Tokens {
        let size = self.facts.page_size;
        Tokens(match prompt.0.saturating_sub(1).checked_div(size) {
            Some(pages) => pages * size,
            None => 0,
        })
    }

    /// A sequence finds room now, and for the time that it stays.
    pub(super) fn has_room(&self, ask: &Ask<'_>, stay: Stay) -> bool {
        let ours = self.pages_ours();
        // Most find room at once: their curves need not be drawn to know it.
        ask.len() <= self.len_max()
            && (self.slots.pages_with_longest(self.pages_of(ask.len())) <= ours
                || self.pages_with(ask, stay) <= ours)
    }

    /// Pages that would be promised here with one more sequence.
    pub(super) fn pages_with(&self, ask: &Ask<'_>, stay: Stay) -> u64 {
        let claim = ask.claim(stay, self.facts.page_size);
        self.slots.pages_with(&claim)
    }

    /// Prompt tokens that it has before it. The worker's own figure is better, as it falls while a
    /// long prompt is computed, but it cannot show what is on the way: the smaller of both
    /// accounts.
    pub(super) fn prefill_pending(&self) -> u64 {
        let (planned, open) = self.slots.prefill();
        let reported = u64::from(self.load.prefill_tokens_queued.0)
            .saturating_add(self.unseen[0])
            .saturating_add(self.unseen[1]);
        planned.saturating_add(open.min(reported))
    }

    /// A sequence of this length can be given to it now.
    pub(super) fn can_take(&self, ask: &Ask<'_>, stay: Stay) -> bool {
        self.is_asked() && self.has_room(ask, stay)
    }

    pub(super) fn is_asked(&self) -> bool {
        self.is_usable()
            && self.backoff.is_none()
            && self.slots.seats_used() < self.facts.num_seqs_max
    }
}

/// All attached workers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    by_key: Slab<Worker>,
    by_session: BTreeMap<SessionId, usize>,
    orders: Orders,
    /// Given prompts in the event at hand.
    pulling: Vec<usize>,
    rules: Arc<PolicyConfig>,
    /// Changed since the orders were true; at most all workers.
    stale: Vec<usize>,
    /// Time of the event at hand.
    now: Micros,
    /// Over the usable workers of each group.
    tallies: [Tally; 2],
    /// Over those that do not drain, ejected ones included.
    staying: Tally,
    /// Workers of each group that would take work and whose breaker is not closed.
    broken: [usize; 2],
    /// Workers that went, by name.
    gone: BTreeMap<String, Gone>,
    /// Of the worker that attached first.
    page_size: u32,
}

impl Workers {
    /// None yet.
    pub(super) fn new(policy: &PolicyConfig) -> Self {
        Self {
            rules: Arc::new(policy.clone()),
            page_size: 1,
            ..Self::default()
        }
    }

    /// Tokens per page of any of them: they serve one model.
    pub(super) const fn page_size(&self) -> u32 {
        self.page_size
    }

    fn first_page_size(&self) -> u32 {
        let first = self.iter().next();
        first.map_or(1, |worker| worker.facts.page_size)
    }

    /// A seat has so many answer tokens. The orders learn of it with the next change of the worker,
    /// at the end of its report.
    pub(super) fn grew(&mut self, key: usize, slot: SlotId, made: Tokens, lengths: &Lengths) {
        if let Some(worker) = self.by_key.get_mut(key) {
            worker.slots.grew(slot, made, lengths);
        }
    }

    /// Its key, and the number of its death if the same process is back.
    pub(super) fn add(&mut self, session: SessionId, facts: WorkerFacts) -> (usize, Option<u64>) {
        let (breaker, incident) = self.recall(&facts);
        let key = self.by_key.insert(Worker::new(
            session,
            facts,
            breaker,
            Arc::clone(&self.rules),
        ));
        self.by_session.insert(session, key);
        self.page_size = self.first_page_size();
        self.count(key);
        self.refresh(key);
        (key, incident)
    }

    pub(super) fn remove(&mut self, key: usize) -> Option<Worker> {
        let worker = self.by_key.try_remove(key)?;
        self.by_session.remove(&worker.session);
        self.orders.change(key, worker.keys, Keys::default());
        self.stale.retain(|&other| other != key);
        self.page_size = self.first_page_size();
        self.uncount(worker.counted);
        Some(worker)
    }

    pub(super) fn key_of(&self, session: SessionId) -> Option<usize> {
        self.by_session.get(&session).copied()
    }

    pub(super) fn get(&self, key: usize) -> Option<&Worker> {
        self.by_key.get(key)
    }

    /// Changes a worker; the orders are true again after [`Workers::settle`].
    pub(super) fn update<T>(
        &mut self,
        key: usize,
        change: impl FnOnce(&mut Worker) -> T,
    ) -> Option<T> {
        let before = self.by_key.get(key)?.standing();
        let (result, after) = self.work(key, |worker| (change(worker), worker.standing()))?;
        if before != after {
            self.count(key);
        }
        Some(result)
    }

    /// Changes what a worker has before it, and nothing of what it may be given.
    pub(super) fn work<T>(
        &mut self,
        key: usize,
        change: impl FnOnce(&mut Worker) -> T,
    ) -> Option<T> {
        let worker = self.by_key.get_mut(key)?;
        if !std::mem::replace(&mut worker.is_stale, true) {
            self.stale.push(key);
        }
        Some(change(worker))
    }

    /// A seat made tokens. Only the first changes what is asked of the worker; what the others do
    /// to its load is seen with its next change, at the latest with its next report.
    pub(super) fn made(&mut self, key: usize, slot: SlotId, tokens: Tokens, is_first: bool) {
        if is_first {
            self.work(key, |worker| worker.made(slot, tokens));
        } else if let Some(worker) = self.by_key.get_mut(key) {
            worker.made(slot, tokens);
        }
    }

    /// By session, in the order in which they attached.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.by_session
            .values()
            .filter_map(|&key| self.by_key.get(key))
    }

    /// Time of the event at hand.
    pub(super) const fn now(&self) -> Micros {
        self.now
    }
}
