//! Which prompt goes where next: the loop that hands what waits to workers, after every event.

use super::{
    Brain,
    admit::Refusal,
    explain::Chosen,
    place::{Choice, Need, Place, left_at},
    queue::Lane,
    sequences::{Phase, Risk, Sequence},
    table::Input,
    timers::DUE_MAX,
    workers::{Task, Worker},
};
use crate::{
    fleet::Role,
    request::{PrefixMark, RejectReason},
    units::Tokens,
};

/// Sequences on their way to a decode worker that are looked at in one event.
const LEAVING_LOOKED: usize = 4;

impl Brain {
    /// Places what can be placed, and notes how fast that goes.
    pub(super) fn place_waiting(&mut self) {
        let before = self.places;
        self.place_all();
        let count = u32::try_from(self.places - before).unwrap_or(u32::MAX);
        // Without workers nothing is to be seen of them.
        let is_waiting = !self.queue.is_empty() && self.workers.is_any_usable();
        self.pace.placed(self.now, count, is_waiting);
    }

    /// What waits goes its way, and where that leaves prompts behind, decode workers help.
    fn place_all(&mut self) {
        self.move_on();
        let reporter = self.reporter.take();
        self.place_first();
        if !self.is_cut_short() && self.steal(reporter) {
            self.place_first();
        }
        if self.is_cut_short() {
            // This goes on at the wake that follows.
            self.reporter = reporter;
        } else {
            self.workers.end_pulls();
        }
    }

    /// There is more at the front of the queue than one event deals with.
    pub(super) const fn is_cut_short(&self) -> bool {
        self.queue.has_more_late() || self.has_more_in_vain
    }

    /// Places from the front of the queue until one does not fit: the order is kept, so nothing
    /// starves.
    fn place_first(&mut self) {
        let mut quarantined = Vec::new();
        let mut ended = 0;
        self.has_more_in_vain = false;
        while let Some(key) = self.next_to_place(&quarantined) {
            self.workers.settle();
            let Some(sequence) = self.sequences.get(key) else {
                return;
            };
            let lane = sequence.queue_key.lane;
            if let Some(why) = self.is_in_vain(sequence) {
                if ended == DUE_MAX {
                    self.has_more_in_vain = true;
                    return;
                }
                ended += 1;
                let is_late = why == RejectReason::DeadlineExceeded && sequence.deadline > self.now;
                self.hopeless_total += u64::from(is_late);
                self.end(key, Some(Refusal::of(why)));
                continue;
            }
            let mut need = self.need(sequence);
            let prefill = need.prefill;
            let mut considered = self.considered();
            if let Some(place) = self.choice(key, &need).choose(&mut considered) {
                self.note_place(key, place, &considered);
                self.put(key, place, prefill);
                continue;
            }
            let is_risk = std::mem::replace(&mut need.risk, Risk::None) != Risk::None
                && self.choice(key, &need).choose(&mut considered).is_some();
            self.note(key, Chosen::Wait, &considered);
            if !is_risk {
                return;
            }
            // There is room, but not in its company.
            quarantined.push(lane);
        }
    }

    /// It goes there.
    fn put(&mut self, key: usize, place: Place, prefill: Tokens) {
        let policy = &self.config.policy;
        let leaves = if policy.gate && policy.linger_ratio > 0.0 {
            policy.linger_tokens
        } else {
            Tokens(1)
        };
        if let (Place::Begin(..), Some(sequence)) = (place, self.sequences.get_mut(key)) {
            sequence.leaves = Some(sequence.answer.plus(leaves));
        }
        self.apply(key, Input::Place(place));
        self.places += 1;
        let (worker, to) = match place {
            Place::Keep(worker) | Place::Begin(worker, _) => (worker, None),
            Place::Pair { prefill, decode } => (prefill, Some(decode)),
        };
        self.workers.taken(worker, Task::Prompts);
        self.workers.pulled(worker, prefill);
        if let Some(to) = to {
            self.workers.taken(to, Task::Imports);
        }
    }

    /// Sequences that made their first tokens where their prompt was computed go on to a decode
    /// worker once one has room; where that worker is itself labelled anew, they have arrived.
    fn move_on(&mut self) {
        let from = self.leaving_next;
        let rest = self.leaving.range(from..).chain(self.leaving.range(..from));
        let leaving: Vec<usize> = rest.copied().take(LEAVING_LOOKED).collect();
        for key in leaving {
            self.leaving_next = key + 1;
            self.workers.settle();
            let Some(Phase::Run { cur }) = self.sequences.get(key).map(|sequence| sequence.phase)
            else {
                self.leaving.remove(&key);
                continue;
            };
            let here = self.workers.get(cur.worker).map(|worker| worker.role);
            if here != Some(Role::Prefill) {
                self.leaving.remove(&key);
                continue;
            }
            let Some(sequence) = self.sequences.get(key) else {
                continue;
            };
            let need = self.need(sequence);
            let choice = self.choice(key, &need);
            let shut = self.pairs.shut(cur.worker);
            let mut considered = self.considered();
            let Some(to) = choice.decode_place(Some((cur.worker, shut)), &mut considered) else {
                continue;
            };
            self.leaving.remove(&key);
            self.workers.taken(to, Task::Imports);
            self.apply(key, Input::MoveTo(to));
        }
    }

    fn next_to_place(&mut self, quarantined: &[Lane]) -> Option<usize> {
        if self.queue.is_empty() {
            return None;
        }
        let open = self.open_lanes();
        let is_open = |lane| open.has(lane) && !quarantined.contains(&lane);
        self.queue.first(is_open)
    }

    /// What a sequence needs of a worker.
    pub(super) fn need(&self, sequence: &Sequence) -> Need<'_> {
        Need {
            ask: self.ask(sequence),
            prefill: sequence.to_prefill(),
            answer_left: sequence.max_tokens.minus(sequence.answer),
            tpot: sequence.tpot,
            risk: self.sequences.risk(sequence),
        }
    }

    pub(super) fn choice<'a>(&'a self, key: usize, need: &'a Need<'a>) -> Choice<'a> {
        let sequence = self.sequences.get(key);
        let marks = sequence.map(|sequence| self.marks(sequence));
        Choice {
            workers: &self.workers,
            pairs: &self.pairs,
            prefixes: &self.prefixes,
            rules: &self.config.policy,
            keep_pool_percent: self.config.keep_pool_percent,
            need,
            marks: marks.unwrap_or_default(),
            sibling: self.siblings(key).next(),
        }
    }

    /// Prompt tokens that a worker would have to compute.
    pub(super) fn left_at(&self, worker: &Worker, sequence: &Sequence) -> Tokens {
        let marks = self.marks(sequence);
        left_at(&self.prefixes, worker, marks, sequence.to_prefill())
    }

    fn marks<'a>(&self, sequence: &'a Sequence) -> &'a [PrefixMark] {
        if self.config.policy.use_prefixes {
            &sequence.prefix
        } else {
            &[]
        }
    }
}
