//! Why a request went where it went: a bounded ring of decisions, by sequence.
//!
//! Who decides notes what was seen, chosen and refused; people read it (`GET /admin/explain/{id}`,
//! `dopd explain`). Nothing is decided by it: a brain with and one without it act alike. A row is
//! about 250 bytes, `BrainConfig::explain_decisions_max` of them at most; 0 turns it off, and a
//! note then costs one comparison. A prompt that waits at the front is looked at after every event:
//! that is one decision, which is brought up to date.

mod told;

use std::collections::{BTreeMap, btree_map::Entry};

pub use self::told::{
    Alternative, Chosen, Decision, ExplainRing, Explanation, Kept, Saw, Task, Verdict,
};

use super::{
    Brain,
    place::Place,
    table::{Fault, PhaseKind},
};
use crate::{
    fleet::Role,
    ids::{RequestId, SequenceId, SessionId},
    request::RejectReason,
    units::{Micros, Tokens},
};

/// Workers that a decision keeps with their scores; of the others it keeps the number.
pub const ALTERNATIVES_MAX: usize = 6;

/// Names of workers that are kept, the latest sessions.
const NAMES_MAX: usize = 4_096;

/// Workers that were looked at for one decision; the caller of a choice makes it, the choice fills
/// it in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Considered {
    rows: [Option<Alternative>; ALTERNATIVES_MAX],
    count: u32,
    is_on: bool,
}

impl Considered {
    /// Notes a worker; the last word about a worker and task counts.
    #[inline]
    pub(super) fn add(&mut self, worker: SessionId, task: Task, score: i64, verdict: Verdict) {
        if self.is_on {
            self.keep(Alternative {
                worker,
                task,
                score,
                verdict,
            });
        }
    }

    /// These were taken, for prefill and decode: who noted them did not know yet.
    fn take(&mut self, [prefill, decode]: [Option<SessionId>; 2]) {
        for row in self.rows.iter_mut().flatten() {
            let is_taken = match row.task {
                Task::Prefill | Task::Steal => prefill == Some(row.worker),
                Task::Decode => decode == Some(row.worker),
                Task::Keep => decode.is_none() && prefill == Some(row.worker),
            };
            if is_taken {
                row.verdict = Verdict::Chosen;
            }
        }
    }

    fn keep(&mut self, row: Alternative) {
        for kept in &mut self.rows {
            match kept {
                Some(old) if (old.worker, old.task) != (row.worker, row.task) => {}
                old => {
                    self.count += u32::from(old.is_none());
                    *old = Some(row);
                    return;
                }
            }
        }
        self.count += 1;
        // The one that was taken is always kept.
        if row.verdict == Verdict::Chosen {
            self.rows[ALTERNATIVES_MAX - 1] = Some(row);
        }
    }
}

/// A decision as the ring keeps it.
#[derive(Clone, Debug)]
struct Row {
    at: Micros,
    until: Micros,
    times: u32,
    sequence: SequenceId,
    saw: Saw,
    chose: Chosen,
    considered: Considered,
    /// Number + 1 of the sequence's decision before; 0: this is its first.
    before: u64,
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Explain {
    rows: Vec<Row>,
    rows_max: usize,
    total: u64,
    /// Number of the newest decision of each sequence that the ring holds.
    newest: BTreeMap<SequenceId, u64>,
    names: BTreeMap<SessionId, String>,
}

impl Explain {
    pub(super) fn new(rows_max: usize) -> Self {
        Self {
            rows_max,
            ..Self::default()
        }
    }

    /// It keeps something.
    pub(super) const fn is_on(&self) -> bool {
        self.rows_max > 0
    }

    /// An empty list for the workers of one choice.
    pub(super) const fn considered(&self) -> Considered {
        Considered {
            rows: [None; ALTERNATIVES_MAX],
            count: 0,
            is_on: self.is_on(),
        }
    }

    /// A worker attached.
    pub(super) fn name(&mut self, session: SessionId, name: &str) {
        if !self.is_on() {
            return;
        }
        self.names.insert(session, name.to_owned());
        if self.names.len() > NAMES_MAX {
            self.names.pop_first();
        }
    }

    fn note(
        &mut self,
        at: Micros,
        sequence: SequenceId,
        saw: Saw,
        chose: Chosen,
        considered: Considered,
    ) {
        let number = self.total;
        let before = match self.newest.entry(sequence) {
            Entry::Vacant(entry) => {
                entry.insert(number);
                None
            }
            Entry::Occupied(mut entry) => {
                let before = *entry.get();
                // The index names only rows that are held.
                let row = self.rows.get_mut(index(before, self.rows_max));
                if let Some(row) =
                    row.filter(|row| (row.chose, chose) == (Chosen::Wait, Chosen::Wait))
                {
                    (row.until, row.saw, row.considered) = (at, saw, considered);
                    row.times = row.times.saturating_add(1);
                    return;
                }
                Some(entry.insert(number))
            }
        };
        let row = Row {
            at,
            until: at,
            times: 1,
            sequence,
            saw,
            chose,
            considered,
            before: before.map_or(0, |before| before + 1),
        };
        self.total += 1;
        if self.rows.len() < self.rows_max {
            self.rows.push(row);
            return;
        }
        let old = std::mem::replace(&mut self.rows[index(number, self.rows_max)], row);
        if let Entry::Occupied(entry) = self.newest.entry(old.sequence)
            && *entry.get() == number - self.rows_max as u64
        {
            entry.remove();
        }
    }

    /// Number of the oldest decision that is held.
    const fn oldest(&self) -> u64 {
        self.total - self.rows.len() as u64
    }

    fn row(&self, number: u64) -> Option<&Row> {
        let is_held = self.is_on() && (self.oldest()..self.total).contains(&number);
        is_held.then(|| self.rows.get(index(number, self.rows_max)))?
    }

    fn decision(&self, number: u64) -> Option<Decision> {
        let row = self.row(number)?;
        let alternatives: Vec<Alternative> = row.considered.rows.into_iter().flatten().collect();
        let listed = u32::try_from(alternatives.len()).unwrap_or(u32::MAX);
        Some(Decision {
            number,
            at: row.at,
            until: row.until,
            times: row.times,
            sequence: row.sequence,
            saw: row.saw,
            chose: row.chose,
            alternatives,
            alternatives_more: row.considered.count.saturating_sub(listed),
        })
    }

    fn ring(&self) -> ExplainRing {
        ExplainRing {
            decisions: self.rows.len(),
            decisions_max: self.rows_max,
            decisions_total: self.total,
            oldest: self.row(self.oldest()).map(|row| row.at),
        }
    }

    fn of_requests(&self, requests: &[RequestId]) -> Explanation {
        let (mut numbers, mut is_cut) = (Vec::new(), false);
        let choices = requests.iter().flat_map(|&request| {
            let id = |choice| SequenceId { request, choice };
            self.newest.range(id(0)..=id(u8::MAX))
        });
        for (_, &newest) in choices {
            let mut next = newest + 1;
            while let Some(row) = next.checked_sub(1).and_then(|number| self.row(number)) {
                numbers.push(next - 1);
                next = row.before;
            }
            is_cut |= next > 0;
        }
        numbers.sort_unstable();
        self.explanation(numbers.into_iter(), is_cut)
    }

    fn explanation(&self, numbers: impl Iterator<Item = u64>, is_cut: bool) -> Explanation {
        let decisions: Vec<Decision> = numbers.filter_map(|n| self.decision(n)).collect();
        let named = decisions.iter().flat_map(Decision::sessions);
        let name = |session: SessionId| Some((session, self.names.get(&session)?.clone()));
        Explanation {
            workers: named.filter_map(name).collect(),
            decisions,
            is_cut,
            ring: self.ring(),
            now: Micros(0),
        }
    }
}

/// Rows turn round in place: the number says where.
#[expect(
    clippy::cast_possible_truncation,
    reason = "less than rows_max, which is a usize"
)]
const fn index(number: u64, rows_max: usize) -> usize {
    (number % rows_max as u64) as usize
}

impl Brain {
    /// An empty list for the workers of one choice; see [`Considered::add`].
    pub(super) const fn considered(&self) -> Considered {
        self.explain.considered()
    }

    /// Notes what was chosen for a living sequence, and what was looked at for it.
    #[inline]
    pub(super) fn note(&mut self, key: usize, chose: Chosen, considered: &Considered) {
        if self.explain.is_on() {
            self.note_now(key, chose, considered);
        }
    }

    fn note_now(&mut self, key: usize, chose: Chosen, considered: &Considered) {
        let Some(sequence) = self.sequences.get(key) else {
            return;
        };
        let has_none = sequence.answer == Tokens(0);
        // A prompt that waits is noted again and again.
        let is_news = chose != Chosen::Wait && sequence.phase.kind() == PhaseKind::Wait;
        let seen = is_news
            .then(|| self.queue.seen(sequence.queue_key))
            .flatten();
        let saw = Saw {
            prompt_tokens: sequence.prompt,
            answer_tokens: sequence.answer,
            max_tokens: sequence.max_tokens,
            waited_us: self.now.since(sequence.arrived).0,
            prefill_us: sequence.prefill.0,
            target_us: has_none.then(|| sequence.ttft_due.since(sequence.arrived).0),
            is_late: seen.is_some_and(|seen| seen.is_late),
            rank: seen.map_or(0, |seen| seen.rank),
            tenant_tokens: seen.map_or(0, |seen| seen.service),
            waiting: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            waiting_tokens: self.queue.tokens(),
        };
        let id = sequence.id;
        self.explain.note(self.now, id, saw, chose, *considered);
    }

    /// The same, of what was chosen without looking at workers.
    #[inline]
    pub(super) fn note_plain(&mut self, key: usize, chose: Chosen) {
        self.note(key, chose, &self.explain.considered());
    }

    /// The same, of a place that was found; the workers of it are among those considered.
    #[inline]
    pub(super) fn note_place(&mut self, key: usize, place: Place, considered: &Considered) {
        if self.explain.is_on() {
            let session = |key| self.workers.get(key).map(|worker| worker.session);
            let (chose, ends) = match place {
                Place::Keep(at) => {
                    let Some(worker) = self.workers.get(at) else {
                        return;
                    };
                    let why = match worker.role {
                        Role::Prefill => Kept::NoPlace,
                        Role::Decode => Kept::Stolen,
                        Role::Mixed => Kept::Label,
                    };
                    let worker = worker.session;
                    (Chosen::Keep { worker, why }, [Some(worker), None])
                }
                Place::Begin(at, why) => {
                    let Some(worker) = session(at) else { return };
                    (Chosen::Keep { worker, why }, [Some(worker), None])
                }
                Place::Pair { prefill, decode } => {
                    let (Some(prefill), Some(decode)) = (session(prefill), session(decode)) else {
                        return;
                    };
                    let chose = Chosen::Pair { prefill, decode };
                    (chose, [Some(prefill), Some(decode)])
                }
            };
            let mut considered = *considered;
            considered.take(ends);
            self.note_now(key, chose, &considered);
        }
    }

    /// A fault sends it back.
    pub(super) fn note_replay(&mut self, key: usize, fault: Fault) {
        self.note_plain(
            key,
            Chosen::Replay {
                fault: fault.word(),
            },
        );
    }

    /// A request that was refused when it came: it has no sequence.
    pub(super) fn note_refused(&mut self, sequence: SequenceId, saw: Saw, why: RejectReason) {
        if self.explain.is_on() {
            let considered = self.explain.considered();
            let chose = Chosen::Reject { why };
            self.explain
                .note(self.now, sequence, saw, chose, considered);
        }
    }

    /// What was decided about these requests, and why, as far as it is remembered.
    pub fn explain(&self, requests: &[RequestId]) -> Explanation {
        Explanation {
            now: self.now,
            ..self.explain.of_requests(requests)
        }
    }

    /// The newest decisions about anybody, oldest first.
    pub fn decisions(&self, count: usize) -> Explanation {
        let (oldest, total) = (self.explain.oldest(), self.explain.total);
        let first = total.saturating_sub(count as u64).max(oldest);
        Explanation {
            now: self.now,
            ..self.explain.explanation(first..total, first > 0)
        }
    }
}

#[cfg(test)]
mod tests;
