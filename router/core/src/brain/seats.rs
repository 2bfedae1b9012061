//! Seats of sequences: planned in the account of a worker, opened, sent on, closed. Called by
//! `act`.

use super::{
    Brain,
    peak::{Ask, Stay},
    replay::PREEMPTIONS_MAX,
    sequences::{Seat, Sequence},
    workers::Resident,
};
use crate::{
    action::{Action, OpenKind},
    ids::SeatId,
    policy::Reserve,
};

impl Brain {
    pub(super) fn plan(&mut self, key: usize, worker: usize, stay: Stay) -> Option<Seat> {
        let sequence = self.sequences.get(key)?;
        let (prompt, to_prefill) = (sequence.prompt, sequence.to_prefill());
        // A worker that computes the prompt for another choice shares its full pages.
        let is_shared = stay != Stay::Import && self.siblings(key).any(|at| at == worker);
        let need = self.need(sequence);
        let at = self.workers.get(worker)?;
        let left = self.left_at(at, sequence);
        let claim = need.ask.claim(stay, at.facts.page_size);
        let (tpot, now) = (sequence.tpot, self.now);
        let slot = self.workers.work(worker, |worker| {
            let shared = worker.shareable(prompt);
            let prefill = match stay {
                Stay::Import => None,
                _ if is_shared => Some(to_prefill.minus(shared)),
                _ => Some(to_prefill),
            };
            let work = prefill.map(|prefill| worker.prompt_us(prefill.min(left)));
            let slot = worker.slots.plan(key, claim, prefill);
            let resident = Resident {
                tpot,
                kv: u64::from(to_prefill.0),
                work_us: work.unwrap_or_default().0,
                stays: stay != Stay::Passing,
                runs: false,
            };
            worker.moves_in(slot, resident, now);
            slot
        })?;
        self.judge_probe(worker, slot);
        Some(Seat { worker, slot })
    }

    /// What a sequence asks of a pool: pages for its longest answer if the policy says so, as long
    /// as lengths are not known, and after too many preemptions.
    pub(super) fn ask(&self, sequence: &Sequence) -> Ask<'_> {
        let is_whole = self.config.policy.reserve == Reserve::MaxTokens
            || !self.lengths.is_known()
            || sequence.preemptions >= PREEMPTIONS_MAX;
        let page_size = self.workers.page_size();
        Ask::new(sequence.shape(), is_whole, page_size, &self.lengths)
    }

    /// The answer of a sequence has tokens more: lengths are learnt of it, and its seat may have
    /// begun a page. Without the policy's promise of pages by lengths nobody asks for either.
    pub(super) fn grew(&mut self, key: usize, seat: Seat) {
        let has_promises = self.config.policy.reserve == Reserve::FuturePeak;
        if let Some(sequence) = self.sequences.get_mut(key).filter(|_| has_promises) {
            let made = sequence.answer;
            self.lengths.grows(&mut sequence.range, made);
            self.workers
                .grew(seat.worker, seat.slot, made, &self.lengths);
        }
    }

    /// An answer ends by itself, unless it is at its limit.
    pub(super) fn learn_length(&mut self, key: usize) {
        match self.sequences.get(key) {
            Some(sequence) if sequence.answer < sequence.max_tokens => {
                self.lengths.ends(sequence.answer);
            }
            Some(_) => self.lengths.is_cut(),
            None => {}
        }
    }

    /// Workers at which other choices of the same request compute their prompt, or did.
    pub(super) fn siblings(&self, key: usize) -> impl Iterator<Item = usize> {
        self.sequences.siblings(key).filter_map(|other| {
            let cur = self.sequences.get(other)?.phase.cur()?;
            let worker = self.workers.get(cur.worker)?;
            worker.slots.is_compute(cur.slot).then_some(cur.worker)
        })
    }

    pub(super) fn open(&mut self, key: usize, seat: Seat, kind: OpenKind) {
        let Some(sequence) = self.sequences.get(key).map(|sequence| sequence.id) else {
            return;
        };
        let pages = self
            .workers
            .work(seat.worker, |worker| worker.open(seat.slot))
            .flatten();
        if let (Some(pages), Some(seat)) = (pages, self.seat_id(seat)) {
            self.actions.push(Action::Open {
                seat,
                sequence,
                pages,
                kind,
            });
        }
    }

    pub(super) fn close(&mut self, seat: Seat) {
        let sends = self
            .workers
            .work(seat.worker, |worker| worker.close(seat.slot));
        if let (Some(true), Some(seat)) = (sends, self.seat_id(seat)) {
            self.actions.push(Action::Close { seat });
        }
    }

    pub(super) fn send(&mut self, cur: Seat, to: Option<Seat>) {
        let to = to.and_then(|seat| self.seat_id(seat));
        if let Some(seat) = self.seat_id(cur) {
            self.actions.push(Action::Send { seat, to });
        }
    }

    pub(super) fn seat_id(&self, seat: Seat) -> Option<SeatId> {
        let session = self.workers.get(seat.worker)?.session;
        Some(SeatId {
            session,
            slot: seat.slot,
        })
    }
}
