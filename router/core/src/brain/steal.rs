//! Decode workers help: a prompt that is computed where it decodes needs no hand-off, and idle
//! neighbours of a queue are worth something.
//!
//! A worker labelled decode takes a prompt at a step boundary, that is at its report, or when it
//! has nothing to do; one at a time; while prefill workers are behind, and always where there are
//! none. It takes the first of the next few that it finishes in time beside those that it decodes:
//! the prompt's own cost times what it is slowed down, not a share of a rate. What is late already
//! goes to workers with nothing to do, or where no other would ever come. Where one that ran
//! before, or is owed its turn, finds no room, nothing behind it is taken, until it fits. What
//! waits is looked at once for all who ask in one event, and again only after something was taken.
//! Source: policy study, section 4, STEAL. Called by `assign` after the prompts that go their way.

use super::{
    Brain,
    explain::{Chosen, Considered, Task, Verdict},
    peak::Stay,
    place::{Need, Place, may_meet},
    sequences::Sequence,
    table::Input,
    workers::{Group, Worker},
};
use crate::{fleet::Role, policy::Steal, units::Micros};

/// Idle workers that may find nothing for them in one event; after so many the others would not
/// either, as faster ones are asked first.
const IDLE_MISSES_MAX: usize = 4;

/// Prompts that may be taken, as long as none is; empty while nobody needs help.
type Next = Option<Vec<usize>>;

impl Brain {
    /// Whose report it is, then those with nothing to do. True: something was taken, so that
    /// another prompt may be first now.
    pub(super) fn steal(&mut self, reporter: Option<usize>) -> bool {
        if self.config.policy.steal != Steal::InTime || self.queue.is_empty() {
            return false;
        }
        let before = self.stolen_total;
        let mut next = None;
        if let Some(key) = reporter {
            self.help(key, &mut next);
        }
        let mut missed = Vec::new();
        while missed.len() < IDLE_MISSES_MAX {
            self.workers.settle();
            let mut idle = self.workers.idle();
            let Some(key) = idle.find(|key| !missed.contains(key)) else {
                break;
            };
            drop(idle);
            if !self.help(key, &mut next) {
                missed.push(key);
            }
        }
        self.stolen_total > before
    }

    /// One worker takes one prompt, if it may and there is one for it.
    fn help(&mut self, key: usize, next: &mut Next) -> bool {
        let worker = self.workers.get(key);
        let Some(slow) = worker.and_then(|worker| self.slow_if(worker)) else {
            return false;
        };
        let scan = next.get_or_insert_with(|| self.next_few());
        for (place, &sequence) in scan.iter().enumerate() {
            let mut considered = self.considered();
            let verdict = self.is_for(key, sequence, slow, &mut considered);
            if verdict.is_ok() {
                let place = Place::Keep(key);
                self.note_place(sequence, place, &considered);
                self.apply(sequence, Input::Place(place));
                self.places += 1;
                self.stolen_total += 1;
                *next = None;
                return true;
            }
            // People ask why the first one waits; the others wait for it.
            if place == 0 {
                self.note(sequence, Chosen::Wait, &considered);
            }
            if matches!(verdict, Err(Verdict::Kv | Verdict::Step)) && self.keeps_room_for(sequence)
            {
                break;
            }
        }
        false
    }

    /// A prompt that waits for room has it before all behind it.
    fn keeps_room_for(&self, waits: usize) -> bool {
        let sequence = self.sequences.get(waits);
        sequence.is_some_and(|one| self.queue.keeps_room_for(one.queue_key, waits))
    }

    /// The next that wait, if prefill workers are behind.
    fn next_few(&mut self) -> Vec<usize> {
        if !self.is_behind() {
            return Vec::new();
        }
        let lanes = self.open_lanes();
        let count = self.config.policy.steal_scan as usize;
        self.queue.scan(|lane| lanes.has(lane), count)
    }

    /// How much slower prompts are there, if it may take one.
    fn slow_if(&self, worker: &Worker) -> Option<f64> {
        let policy = &self.config.policy;
        let has_none = worker.role == Role::Decode && worker.prefill_pending() == 0;
        let has_room = worker.residents.seqs() == 0 || worker.is_below(policy.steal_kv_ratio, 1);
        (has_none && has_room && worker.is_asked()).then(|| worker.slow(policy))?
    }

    /// Prefill workers have so much before them, in time of each, that others help; or the first
    /// that waits has waited as long, whatever was predicted.
    fn is_behind(&mut self) -> bool {
        let workers = self.workers.totals(Group::Prompts).workers as u64;
        let lanes = self.open_lanes();
        let first = self.queue.first(|lane| lanes.has(lane));
        let Some(first) = first.and_then(|key| self.sequences.get(key)) else {
            return false;
        };
        let Some(each) = self.queue.work_us().0.checked_div(workers) else {
            return true;
        };
        let target = first.ttft_due.since(first.arrived);
        let waited = self.now.since(first.arrived).0;
        each.max(waited) > target.times(self.config.policy.steal_wait_ratio).0
    }

    /// A prompt that waits is one for this worker.
    fn is_for(
        &self,
        key: usize,
        waits: usize,
        slow: f64,
        considered: &mut Considered,
    ) -> Result<(), Verdict> {
        let (Some(worker), Some(sequence)) = (self.workers.get(key), self.sequences.get(waits))
        else {
            return Err(Verdict::NotNeeded);
        };
        let left = self.left_at(worker, sequence);
        let takes = worker.prompt_us(left).times(slow);
        let is_in_time = self.is_in_time(worker, sequence, takes);
        // Most are not in time; whether they would fit matters to few of these.
        let verdict = if is_in_time || self.keeps_room_for(waits) {
            self.may_take(worker, waits, sequence)
        } else {
            Ok(())
        };
        let verdict = verdict.and(if is_in_time {
            Ok(())
        } else {
            Err(Verdict::InTime)
        });
        let score = i64::try_from(takes.0).unwrap_or(i64::MAX);
        let word = verdict.err().unwrap_or(Verdict::Worse);
        considered.add(worker.session, Task::Steal, score, word);
        verdict
    }

    /// It has room, and nothing is against its coming here.
    fn may_take(&self, worker: &Worker, waits: usize, sequence: &Sequence) -> Result<(), Verdict> {
        let need = self.need(sequence);
        worker.fits(&need)?;
        if !may_meet(worker, need.risk) {
            Err(Verdict::Quarantine)
        } else if self.is_awaited(waits, &need) {
            Err(Verdict::NotNeeded)
        } else {
            Ok(())
        }
    }

    /// It shares the prompt with a choice that another worker computes, and gets there, or to a
    /// worker labelled for prompts, by itself.
    fn is_awaited(&self, waits: usize, need: &Need<'_>) -> bool {
        let first = self.siblings(waits).next();
        first.is_some_and(|key| {
            let worker = self.workers.get(key);
            self.workers.totals(Group::Prompts).workers > 0
                || worker.is_some_and(|worker| worker.can_take(&need.ask, Stay::Here))
        })
    }

    /// The worker is done by then; or nobody would be, and no other has anything better to do.
    fn is_in_time(&self, worker: &Worker, sequence: &Sequence, takes: Micros) -> bool {
        let due = sequence.ttft_due;
        if self.now.plus(takes) <= due {
            return true;
        }
        let is_free = worker.residents.running() == 0;
        let is_alone = self.workers.totals(Group::Prompts).workers == 0;
        (is_free || is_alone) && self.now.plus(worker.prompt_us(sequence.to_prefill())) > due
    }
}
