//! The orders in which placement looks at workers. Each worker stands in each at most once, at keys
//! that `settle` makes true, so that finding the first of any is O(log n). Whoever looks settles
//! first: an event changes a worker several times, and many events place nothing.

use std::{cmp::Reverse, collections::BTreeSet, ops::Bound};

use super::{Group, Worker, Workers};
use crate::{
    fleet::Role,
    policy::{Bind, PlaceBy},
    units::{Micros, Tokens},
};

/// Predicted times closer than this are equal: an idle fleet takes turns by load.
const SCORE_US: u64 = 4_096;

/// Prompt tokens still to compute count so many times a token of KV.
const PROMPT_WEIGHT: u64 = 5;

/// Smaller goes first.
type Score = (u64, u64, u64);

/// Where a worker stands in the orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// Takes prompts now.
    prompts: Option<(Group, Score)>,
    /// Will take prompts then, if nothing is heard before.
    due: Option<Micros>,
    /// Takes hand-offs.
    imports: Option<u64>,
    /// Pages that it can promise.
    room: Option<(Group, Reverse<u64>)>,
    /// Labelled decode, and nobody runs there.
    idle: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Orders {
    prompts: [BTreeSet<(Score, usize)>; 2],
    due: BTreeSet<(Micros, usize)>,
    imports: BTreeSet<(u64, usize)>,
    rooms: [BTreeSet<(Reverse<u64>, usize)>; 2],
    idle: BTreeSet<(u64, usize)>,
    /// Who was taken last, for prompts and for hand-offs: in turn it goes on behind.
    last: [Option<usize>; 2],
}

/// What orders are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::brain) enum Task {
    Prompts,
    Imports,
}

impl Worker {
    pub(super) fn wanted_keys(&self, now: Micros) -> Keys {
        if !self.is_asked() || self.pages_room() == 0 {
            return Keys::default();
        }
        let group = Group::of(self.role);
        let is_open = self.is_open();
        let (ready, due) = match self.ready_at() {
            Some(at) if at <= now => (true, None),
            other => (false, other),
        };
        let is_idle = self.role == Role::Decode
            && self.residents.running() == 0
            && self.prefill_pending() == 0;
        Keys {
            prompts: (ready && is_open).then(|| (group, self.prompt_score())),
            due,
            imports: (self.role == Role::Decode && is_open).then(|| self.import_score()),
            room: Some((group, Reverse(self.pages_room()))),
            idle: is_idle.then_some(self.prompt_us.0 / SCORE_US),
        }
    }

    /// One more short sequence could decode here. Of those that hand off nothing is asked.
    fn is_open(&self) -> bool {
        self.role == Role::Prefill
            || self.residents.seqs() == 0
            || (self.is_below(self.rules.place_kv_ratio, 1)
                && self.is_in_step(self.rules.place_step_ratio, 1, Some(Micros(u64::MAX))))
    }

    /// From when on it is given prompts; `None`: not before it says more.
    fn ready_at(&self) -> Option<Micros> {
        if self.pull_left() > Some(0) {
            return Some(Micros(0));
        }
        self.free_at()
    }

    /// From when on it is about to be free, as far as is known.
    fn free_at(&self) -> Option<Micros> {
        let pending = self.prefill_pending();
        if pending == 0 || self.rules.bind == Bind::Early {
            return Some(Micros(0));
        }
        // Until it reports, no more than a step's prompts are bound on the word of a prediction.
        let is_confirmed = pending <= u64::from(self.facts.batch_tokens_max.0);
        is_confirmed.then(|| Micros(self.busy_until.since(self.rules.bind_ahead).0))
    }

    /// A prompt of so many tokens may join those of the event at hand, or the worker is about to be
    /// free in any case.
    pub(in crate::brain) fn takes(&self, prefill: Tokens, now: Micros) -> bool {
        self.pull_left() >= Some(u64::from(prefill.0)) || self.free_at().is_some_and(|at| at <= now)
    }

    /// Prompt tokens that it still takes together with those of the event at hand; `None`: it was
    /// given none.
    fn pull_left(&self) -> Option<u64> {
        let most = self
            .rules
            .prefill_tokens_max
            .min(self.facts.batch_tokens_max);
        Some(u64::from(most.0).saturating_sub(self.pull?))
    }

    fn prompt_score(&self) -> Score {
        let first = match (self.rules.bind, self.rules.place) {
            (Bind::Early, PlaceBy::RoundRobin) => return (0, 0, 0),
            (Bind::Early, PlaceBy::FewestSequences) => u64::from(self.slots.seats_used()),
            (Bind::Early, PlaceBy::LeastTokens) if self.role == Role::Mixed => self.tokens_score(),
            _ => self.finish_us_of(self.prompt_us).0 / SCORE_US,
        };
        (first, self.prefill_pending(), self.slots.pages_used())
    }

    fn tokens_score(&self) -> u64 {
        let prompts = PROMPT_WEIGHT.saturating_mul(self.prefill_pending());
        self.residents.kv().saturating_add(prompts)
    }

    /// How much a worker is preferred for a hand-off; lower is better.
    pub(in crate::brain) fn import_score(&self) -> u64 {
        match self.rules.place {
            PlaceBy::LeastTokens => self.tokens_score(),
            PlaceBy::FewestSequences => u64::from(self.slots.seats_used()),
            PlaceBy::MostPages => u64::MAX - self.pages_room(),
            PlaceBy::RoundRobin => 0,
        }
    }
}

impl Workers {
    /// Ready for a prompt, the best first.
    pub(in crate::brain) fn ready_for_prompts(
        &self,
        group: Group,
    ) -> impl Iterator<Item = (usize, &Worker)> {
        let in_turn = self.rules.bind == Bind::Early && self.rules.place == PlaceBy::RoundRobin;
        let order = &self.orders.prompts[group as usize];
        let last = self.orders.last[Task::Prompts as usize].filter(|_| in_turn);
        self.of(turn(order, last.map(|key| ((0, 0, 0), key))))
    }

    /// Ready for a hand-off, the best first.
    pub(in crate::brain) fn ready_for_imports(&self) -> impl Iterator<Item = (usize, &Worker)> {
        let in_turn = self.rules.place == PlaceBy::RoundRobin;
        let last = self.orders.last[Task::Imports as usize].filter(|_| in_turn);
        self.of(turn(&self.orders.imports, last.map(|key| (0, key))))
    }

    /// How many are ready for that.
    pub(in crate::brain) fn ready(&self, group: Group, task: Task) -> usize {
        match task {
            Task::Prompts => self.orders.prompts[group as usize].len(),
            Task::Imports => self.orders.imports.len(),
        }
    }

    /// Of a group, those that can promise most pages first, ready or not.
    pub(in crate::brain) fn roomiest(
        &self,
        group: Group,
    ) -> impl Iterator<Item = (usize, &Worker)> {
        self.of(self.orders.rooms[group as usize]
            .iter()
            .map(|&(_, key)| key))
    }

    /// Labelled decode where nobody runs, the fastest first.
    pub(in crate::brain) fn idle(&self) -> impl Iterator<Item = usize> {
        self.orders.idle.iter().map(|&(_, key)| key)
    }

    /// Somebody of a group is ready for a prompt.
    pub(in crate::brain) fn is_anybody_ready(&self, group: Group) -> bool {
        !self.orders.prompts[group as usize].is_empty()
    }

    /// It is ready for that.
    pub(in crate::brain) fn is_ready(&self, key: usize, task: Task) -> bool {
        self.get(key).is_some_and(|worker| match task {
            Task::Prompts => worker.keys.prompts.is_some(),
            Task::Imports => worker.keys.imports.is_some(),
        })
    }

    /// It was taken: those that are taken in turn go on behind it.
    pub(in crate::brain) fn taken(&mut self, key: usize, task: Task) {
        self.orders.last[task as usize] = Some(key);
    }

    /// A worker was given a prompt of so many tokens; others of the same event may join it.
    pub(in crate::brain) fn pulled(&mut self, key: usize, tokens: Tokens) {
        self.work(key, |worker| {
            let pull = worker.pull.get_or_insert(0);
            *pull = pull.saturating_add(u64::from(tokens.0));
        });
        self.pulling.push(key);
    }

    /// The event is over: what was given goes out.
    pub(in crate::brain) fn end_pulls(&mut self) {
        while let Some(key) = self.pulling.pop() {
            self.work(key, |worker| worker.pull = None);
        }
    }

    /// Time goes on.
    pub(in crate::brain) const fn tick(&mut self, now: Micros) {
        self.now = now;
    }

    /// Workers that were about to be free by then take prompts; a time that has come.
    pub(in crate::brain) fn advance(&mut self, until: Micros) {
        while let Some(&(at, key)) = self.orders.due.first()
            && at <= until
        {
            self.refresh(key);
        }
    }

    /// When the next worker is about to be free.
    pub(in crate::brain) fn next_due(&self) -> Option<Micros> {
        self.orders.due.first().map(|&(at, _)| at)
    }

    fn of(&self, keys: impl Iterator<Item = usize>) -> impl Iterator<Item = (usize, &Worker)> {
        keys.filter_map(|key| Some((key, self.by_key.get(key)?)))
    }

    /// Makes the orders true.
    pub(in crate::brain) fn settle(&mut self) {
        while let Some(key) = self.stale.pop() {
            self.refresh(key);
        }
    }

    pub(super) fn refresh(&mut self, key: usize) {
        if let Some(worker) = self.by_key.get_mut(key) {
            worker.is_stale = false;
            worker.slots.settle();
            let wanted = worker.wanted_keys(self.now);
            let old = std::mem::replace(&mut worker.keys, wanted);
            self.orders.change(key, old, wanted);
        }
    }
}

impl Orders {
    pub(super) fn change(&mut self, key: usize, old: Keys, new: Keys) {
        let Self {
            prompts,
            due,
            imports,
            rooms,
            idle,
            ..
        } = self;
        if old.prompts != new.prompts {
            if let Some((group, score)) = old.prompts {
                prompts[group as usize].remove(&(score, key));
            }
            if let Some((group, score)) = new.prompts {
                prompts[group as usize].insert((score, key));
            }
        }
        if old.room != new.room {
            if let Some((group, room)) = old.room {
                rooms[group as usize].remove(&(room, key));
            }
            if let Some((group, room)) = new.room {
                rooms[group as usize].insert((room, key));
            }
        }
        shift(due, key, old.due, new.due);
        shift(imports, key, old.imports, new.imports);
        shift(idle, key, old.idle, new.idle);
    }
}

fn shift<T: Ord + Copy>(
    order: &mut BTreeSet<(T, usize)>,
    key: usize,
    old: Option<T>,
    new: Option<T>,
) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        order.remove(&(old, key));
    }
    if let Some(new) = new {
        order.insert((new, key));
    }
}

/// All of an order, from behind `last` on and around.
fn turn<T: Ord + Copy>(
    order: &BTreeSet<(T, usize)>,
    last: Option<(T, usize)>,
) -> impl Iterator<Item = usize> {
    let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = last.map(|last| order.range(..=last));
    let begin = order.range((behind, Bound::Unbounded));
    begin.chain(rest.into_iter().flatten()).map(|&(_, key)| key)
}
