//! Step boundary: what the next step computes. The choice is `dopd_core::step`'s; here it gets its
//! view, and becomes rows.

use dopd_core::{
    step::{Belief, StepChoice, StepPolicy, StepView, StepWork, choose},
    units::Micros,
};
use dopd_router::wire::worker::{Report, Role};

use super::{
    Batch, Seats,
    batch::Row,
    types::{Seat, count, fill},
};

impl Seats {
    /// Step boundary: freezes what may freeze, then says what the next step computes, and takes the
    /// pages that it needs. `None`: nothing.
    ///
    /// `pages_left_max`: pages that the link writes within one decode step.
    pub fn begin_step(&mut self, now: Micros, pages_left_max: u32) -> Option<Batch> {
        self.now = now;
        self.settle(now, pages_left_max);
        loop {
            let (choice, batch, has_prompts) = self.plan(now)?;
            if self.grow(now, &batch) {
                let has_decodes = !self.residents.is_empty();
                if let Some(belief) = &mut self.belief {
                    belief.began(choice, has_decodes, has_prompts);
                }
                return Some(batch);
            }
            // Somebody lost its pages, and its row: the choice is another one.
        }
    }

    /// Forgets seats that are gone, freezes those that may freeze, and counts those that decode.
    fn settle(&mut self, now: Micros, pages_left_max: u32) {
        let policy = self.step_policy();
        let mut active = std::mem::take(&mut self.active);
        active.retain(|&(slot, life)| {
            if self.seat(slot).is_none_or(|seat| seat.life != life) {
                return false;
            }
            self.freeze_if_near(slot, pages_left_max);
            let seat = self.by_slot.get_mut(slot as usize).and_then(Option::as_mut);
            if let Some(seat) = seat
                && seat.phase.is_stepping()
                && seat.is_prefilled()
                && seat.stay.is_none()
            {
                seat.stay = Some(self.residents.join(&policy, now, seat.tpot, now, 1));
            }
            true
        });
        self.active = active;
    }

    fn step_policy(&self) -> StepPolicy {
        self.session.map_or_else(fill, |terms| terms.step)
    }

    /// The choice, its rows, and whether a prompt waits.
    fn plan(&self, now: Micros) -> Option<(StepChoice, Batch, bool)> {
        let policy = self.step_policy();
        let belief = self.belief.unwrap_or_else(|| Belief::new(&policy));
        let mut waiting: Vec<(u32, &Seat)> = self
            .stepping()
            .filter(|(_, seat)| !seat.is_prefilled())
            .collect();
        // Stable: who came first goes first.
        waiting.sort_by_key(|(_, seat)| seat.priority);
        let prompts: Vec<(u32, u32)> = waiting
            .iter()
            .map(|(_, seat)| (count(seat.todo.len()) - seat.computed, seat.computed))
            .collect();
        let decode = self.decode_work();
        let view = StepView {
            now,
            is_decode: self.label.role == Role::Decode,
            tokens_max: self.config.batch_tokens_max,
            residents: &self.residents,
            decode_seqs: decode.decode_seqs,
            decode_context: decode.decode_context,
            prompts: &prompts,
        };
        let choice = choose(&policy, &belief, &view, &self.config.timings);
        if choice == StepChoice::Idle {
            return None;
        }
        let tokens = choice.prompt_tokens().0;
        let mut batch = Batch::default();
        let mut work = StepWork::default();
        if choice.has_decodes() {
            work = decode;
            batch.decode_seqs = decode.decode_seqs;
            batch.decode_context = decode.decode_context;
            let decoding = self.stepping().filter(|(_, seat)| seat.is_prefilled());
            batch.rows = decoding.map(|(slot, seat)| row(slot, seat, 1)).collect();
        }
        let mut rest = tokens;
        for ((slot, seat), &(todo, computed)) in waiting.iter().zip(&prompts) {
            let new = todo.min(rest);
            if new > 0 {
                rest -= new;
                batch.prefill.push((new, computed));
                batch.rows.push(row(*slot, seat, new));
            }
        }
        let work = work.with_prompts(&prompts, tokens);
        batch.plain_us = self.config.timings.plain_us(work);
        batch.expected_us = belief.expected_us(batch.plain_us, work.is_mixed());
        Some((choice, batch, !prompts.is_empty()))
    }

    /// A step of all that decode now.
    fn decode_work(&self) -> StepWork {
        let decoding = self.stepping().filter(|(_, seat)| seat.is_prefilled());
        let (seqs, context) = decoding.fold((0, 0), |(seqs, context), (_, seat)| {
            (seqs + 1, context + u64::from(seat.computed))
        });
        StepWork::decode(seqs, context)
    }

    /// What the router is told of steps to come, and how those before were chosen.
    pub(super) fn add_outlook(&self, report: &mut Report) {
        let us = |us: u64| u32::try_from(us).unwrap_or(u32::MAX);
        let decode_us = self.config.timings.plain_us(self.decode_work());
        report.decode_step_us = us(decode_us);
        report.preempted = self.preempted;
        if let Some(belief) = &self.belief {
            report.mixed_penalty_permille = belief.penalty_permille();
            report.steps_mixed = belief.steps_mixed();
            report.steps_paused = belief.steps_paused();
        }
    }
}

fn row(slot: u32, seat: &Seat, tokens: u32) -> Row {
    Row {
        slot,
        life: seat.life,
        tokens,
        spoil: None,
    }
}
