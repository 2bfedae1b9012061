//! Where the next sequence goes. Pure in the workers: one look, one answer; `act` carries it out.
//!
//! A place to decode is found before anything starts, so no finished prompt ever holds pages for a
//! place that is not there. A prompt goes to a worker labelled prefill or mixed that is free, or
//! about to be; of the best few to the one that is done with it first, pages that it has cached
//! counted as done. Mixed ones keep it; a prefill worker hands it to the decode worker that the
//! policy prefers of those with room, and keeps it if there is none, or none to which the way is
//! open; what is kept for want of a place moves on once there is one. Roles are labels: where none
//! labelled for prompts could hold the sequence, a decode worker takes it whole; where there are
//! none at all, they help themselves (`steal`).
//!
//! Of 2,000 workers at most [`LOOKED`] are looked at in the order of each question, and as many in
//! the order of room, so that a sequence that is too long for the first finds who can hold it.

use std::cell::OnceCell;

use super::{
    explain::{Considered, Kept, Task as Asked, Verdict},
    pairs::Pairs,
    peak::{Ask, Stay},
    prefixes::Prefixes,
    sequences::Risk,
    workers::{Group, Task, Worker, Workers},
};
use crate::{
    fleet::Role,
    policy::{PolicyConfig, Steal},
    request::PrefixMark,
    units::{Micros, Tokens},
};

/// Workers that are looked at in one order.
pub(super) const LOOKED: usize = 16;

/// Ready workers of which the one is chosen that is done first, where some may have a prefix.
const COMPARED: usize = 8;

/// Keys of the workers chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Computes and keeps it.
    Keep(usize),
    /// Computes it and makes tokens; moves it on when there is a place. Why.
    Begin(usize, Kept),
    /// Computes it; the other takes it over.
    Pair { prefill: usize, decode: usize },
}

/// What is to be placed.
#[derive(Clone, Debug)]
pub(super) struct Need<'a> {
    /// Pages, now and later.
    pub(super) ask: Ask<'a>,
    /// Tokens to compute before the next answer token.
    pub(super) prefill: Tokens,
    /// Answer tokens that may still be made.
    pub(super) answer_left: Tokens,
    /// Its target per token.
    pub(super) tpot: Micros,
    pub(super) risk: Risk,
}

impl Need<'_> {
    /// Tokens of KV with which it begins to decode.
    pub(super) fn kv(&self) -> u64 {
        u64::from(self.prefill.0)
    }
}

/// One choice.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) workers: &'a Workers,
    pub(super) pairs: &'a Pairs,
    pub(super) prefixes: &'a Prefixes,
    pub(super) rules: &'a PolicyConfig,
    pub(super) keep_pool_percent: u32,
    pub(super) need: &'a Need<'a>,
    /// None where prefixes decide nothing.
    pub(super) marks: &'a [PrefixMark],
    /// Where another choice of the request computes the same prompt. It goes there if there is
    /// room, however much that worker has before it: only what follows the shared pages is added.
    pub(super) sibling: Option<usize>,
}

/// What became of one worker that was looked at.
enum Look {
    Taken(Place),
    /// It has no place to hand to that it reaches; another may.
    CutOff,
    No,
}

impl Choice<'_> {
    /// Chooses. `None`: nobody has room for it now.
    pub(super) fn choose(&self, considered: &mut Considered) -> Option<Place> {
        let anywhere = OnceCell::new();
        let mut cut_off = None;
        let sibling = self.sibling.filter(|&key| self.can_join(key));
        let mut look = |key: usize, considered: &mut Considered| {
            let looked = self.look(key, sibling == Some(key), &anywhere, considered);
            if matches!(looked, Look::CutOff) {
                cut_off = cut_off.or(Some(key));
            }
            match looked {
                Look::Taken(place) => Some(place),
                Look::CutOff | Look::No => None,
            }
        };
        if let Some(place) = sibling.and_then(|key| look(key, considered)) {
            return Some(place);
        }
        if let Some(place) = self.local(considered) {
            return Some(place);
        }
        let group = self.group()?;
        if !self.workers.is_anybody_ready(group) {
            return None;
        }
        let found = if self.marks.is_empty() {
            let mut ready = self.workers.ready_for_prompts(group).take(LOOKED);
            ready.find_map(|(key, _)| look(key, considered))
        } else {
            let mut ready = self.by_finish(group).into_iter();
            ready.find_map(|key| look(key, considered))
        };
        let place = found.or_else(|| {
            // Whoever was ready was looked at, unless there are more.
            let is_more = self.workers.ready(group, Task::Prompts) > LOOKED;
            let roomy = self.workers.roomiest(group).take(LOOKED);
            roomy
                .take_while(|_| is_more)
                .filter(|&(key, _)| self.workers.is_ready(key, Task::Prompts))
                .find_map(|(key, _)| look(key, considered))
        });
        place.or_else(|| cut_off.map(Place::Keep))
    }

    /// Which workers are asked.
    fn group(&self) -> Option<Group> {
        if self.can_hold(Group::Prompts) {
            Some(Group::Prompts)
        } else if self.rules.steal == Steal::InTime
            && self.workers.totals(Group::Prompts).workers == 0
        {
            None
        } else {
            Some(Group::Decode)
        }
    }

    fn can_hold(&self, group: Group) -> bool {
        self.workers.totals(group).len_max >= self.need.ask.len()
    }

    /// With one token left there is nothing to hand off: it comes out of the prefill itself.
    fn wants_pair(&self) -> bool {
        self.can_hold(Group::Decode) && self.need.answer_left > Tokens(1)
    }

    fn can_join(&self, key: usize) -> bool {
        let worker = self.workers.get(key);
        worker.is_some_and(|worker| worker.can_take(&self.need.ask, Stay::Here))
    }

    /// The first few that are ready, by when they would be done with this prompt.
    fn by_finish(&self, group: Group) -> Vec<usize> {
        let ready = self.workers.ready_for_prompts(group).take(LOOKED);
        let mut keys: Vec<usize> = ready.map(|(key, _)| key).collect();
        let compared = keys.len().min(COMPARED);
        keys[..compared].sort_by_cached_key(|&key| {
            let worker = self.workers.get(key);
            worker.map(|worker| {
                let left = left_at(self.prefixes, worker, self.marks, self.need.prefill);
                worker.finish_us(left)
            })
        });
        keys
    }

    /// A prompt below the fixed threshold is computed where it decodes.
    fn local(&self, considered: &mut Considered) -> Option<Place> {
        let Steal::Shorter(below) = self.rules.steal else {
            return None;
        };
        let is_local = self.need.prefill < below && self.can_hold(Group::Decode);
        let place = is_local.then(|| self.decode_place(None, considered))?;
        place.map(Place::Keep)
    }

    /// One worker, for the prompt and what follows. `anywhere`: the place to decode that anybody
    /// reaches, once it was looked for.
    fn look(
        &self,
        key: usize,
        is_sibling: bool,
        anywhere: &OnceCell<Option<usize>>,
        considered: &mut Considered,
    ) -> Look {
        let Some(worker) = self.workers.get(key) else {
            return Look::No;
        };
        let score = i64::try_from(worker.finish_us(self.need.prefill).0).unwrap_or(i64::MAX);
        let mut looked = |verdict| {
            considered.add(worker.session, Asked::Prefill, score, verdict);
        };
        if !worker.has_room(&self.need.ask, Stay::Passing) {
            looked(Verdict::Kv);
            return Look::No;
        }
        if !may_meet(worker, self.need.risk) {
            looked(Verdict::Quarantine);
            return Look::No;
        }
        if !is_sibling && !worker.takes(self.need.prefill, self.workers.now()) {
            looked(Verdict::Busy);
            return Look::No;
        }
        if worker.role != Role::Prefill || !self.wants_pair() {
            let decodes = self.need.answer_left > Tokens(1);
            return match worker.fits(self.need).err().filter(|_| decodes) {
                Some(why) => {
                    looked(why);
                    Look::No
                }
                None => Look::Taken(Place::Keep(key)),
            };
        }
        if !self.rules.gate {
            return Look::Taken(Place::Begin(key, Kept::Ungated));
        }
        looked(Verdict::Gate);
        self.pair(key, worker, anywhere, considered)
    }

    /// A prefill worker, and where its prompt goes on.
    fn pair(
        &self,
        key: usize,
        worker: &Worker,
        anywhere: &OnceCell<Option<usize>>,
        considered: &mut Considered,
    ) -> Look {
        let shut = self.pairs.shut(key);
        let decode = if shut > 0 {
            self.decode_place(Some((key, shut)), considered)
        } else {
            *anywhere.get_or_init(|| self.decode_place(None, considered))
        };
        if let Some(decode) = decode {
            return Look::Taken(if self.lingers(worker, decode) {
                Place::Begin(key, Kept::Linger)
            } else {
                Place::Pair {
                    prefill: key,
                    decode,
                }
            });
        }
        let is_cut_off = shut > 0 && shut >= self.workers.totals(Group::Decode).workers;
        let verdict = self.may_keep(worker);
        let step = i64::try_from(worker.decode_us(1, self.need.kv()).0).unwrap_or(i64::MAX);
        let word = verdict.err().unwrap_or(Verdict::Worse);
        considered.add(worker.session, Asked::Keep, step, word);
        let has_room = worker.has_room(&self.need.ask, Stay::Here);
        if !has_room || (!is_cut_off && verdict.is_err()) {
            return Look::No;
        }
        if shut == 0 {
            // A place may be free by the time that its prompt is computed, or later.
            return Look::Taken(Place::Begin(key, Kept::NoPlace));
        }
        // The way to who has room is cut from here. From another it may be open.
        Look::CutOff
    }

    /// The decode worker that the policy prefers, if the sequence fits, of those that the source
    /// reaches. `source`: its key, and to how many its way is cut.
    pub(super) fn decode_place(
        &self,
        source: Option<(usize, usize)>,
        considered: &mut Considered,
    ) -> Option<usize> {
        let mut fits = |&(key, worker): &(usize, &Worker)| {
            let is_cut = source.is_some_and(|(from, _)| self.pairs.is_shut((from, key)));
            let verdict = if is_cut {
                Err(Verdict::Breaker)
            } else {
                worker.fits(self.need)
            };
            let score = i64::try_from(worker.import_score()).unwrap_or(i64::MAX);
            let word = verdict.err().unwrap_or(Verdict::Worse);
            considered.add(worker.session, Asked::Decode, score, word);
            verdict.is_ok()
        };
        let looked = LOOKED + source.map_or(0, |(_, shut)| shut);
        let mut best = self.workers.ready_for_imports().take(looked);
        let found = best.find(&mut fits).or_else(|| {
            let is_more = self.workers.ready(Group::Decode, Task::Imports) > looked;
            let roomy = self.workers.roomiest(Group::Decode).take(looked);
            roomy.take_while(|_| is_more).find(|&(key, worker)| {
                self.workers.is_ready(key, Task::Imports) && fits(&(key, worker))
            })
        });
        found.map(|(key, _)| key)
    }

    /// The gap that a hand-off leaves after the first token would be long: what is not sent while
    /// the prompt is computed, the rest of the step under way over there, and one of its own. Then
    /// the source makes the first tokens, and short answers end before anything is sent.
    fn lingers(&self, worker: &Worker, decode: usize) -> bool {
        let ratio = self.rules.linger_ratio;
        let Some(there) = self.workers.get(decode).filter(|_| ratio > 0.0) else {
            return false;
        };
        let last = self.need.prefill.min(worker.facts.batch_tokens_max);
        let bytes = u64::from(worker.pages_of(last).0).saturating_mul(worker.facts.page_bytes);
        let sent = worker.facts.timings.handoff_us(bytes);
        let step = there.decode_us(1, self.need.kv());
        let gap = sent.plus(step).plus(Micros(step.0 / 2));
        gap > there.target(Some(self.need.tpot)).times(ratio)
    }

    /// All decode workers are full: a prefill worker may keep a sequence while prompts find
    /// another, its own step stays short, and enough of its pool stays for prompts that leave
    /// again.
    fn may_keep(&self, worker: &Worker) -> Result<(), Verdict> {
        let pages = worker.pages_with(&self.need.ask, Stay::Here);
        let pool = u64::from(worker.facts.pages_total.0);
        if !self.rules.keep || !self.has_other(worker) {
            Err(Verdict::Gate)
        } else if pages * 100 > pool * u64::from(self.keep_pool_percent) {
            Err(Verdict::Kv)
        } else if !worker.is_in_step(
            self.rules.keep_step_ratio,
            self.need.kv(),
            Some(self.need.tpot),
        ) {
            Err(Verdict::Step)
        } else {
            Ok(())
        }
    }

    /// Another worker takes prompts soon, or there is no other. One sequence that decodes costs a
    /// worker more than a quarter of its time for prompts: while all are busy it is cheaper to wait
    /// for a place.
    fn has_other(&self, worker: &Worker) -> bool {
        let soon = self.rules.ttft.times(self.rules.steal_wait_ratio);
        let mut others = self.workers.roomiest(Group::Prompts).take(LOOKED);
        self.workers.totals(Group::Prompts).workers <= 1
            || others.any(|(_, other)| {
                other.session != worker.session && other.finish_us(Tokens(1)) <= soon
            })
    }
}

/// Prompt tokens of so many that a worker would have to compute.
pub(super) fn left_at(
    prefixes: &Prefixes,
    worker: &Worker,
    marks: &[PrefixMark],
    prefill: Tokens,
) -> Tokens {
    if marks.is_empty() {
        return prefill;
    }
    let size = worker.facts.page_size;
    let cached = prefixes.cached_tokens(worker.session, size, marks);
    // Its last token is computed in any case.
    Tokens(prefill.minus(cached).0.max(1))
}

/// Who may bring a worker down is computed alone among those under whom one died already, so that
/// it takes none of them with it.
pub(super) fn may_meet(worker: &Worker, risk: Risk) -> bool {
    match risk {
        Risk::None => true,
        Risk::Bystander => worker.suspects.is_none(),
        Risk::Suspect(request) => {
            worker.bystanders == 0 && worker.suspects.is_none_or(|(of, _)| of == request)
        }
    }
}
