//! Steps: what they compute, how long they take, what comes of them.
//!
//! Decode steps in which nobody comes, ends or needs a page that is not there are one leap: their
//! times are added up one by one, rounded as each would be, but nothing else is touched.

use dopd_core::{
    cost::whole_us,
    step::{StepChoice, StepWork},
    units::Micros,
};

use super::{Phase, Worker, decoding::Due, seat::Seat};

/// Longest leap.
const LEAP_MAX: u32 = 4_096;

/// A step under way, or a leap of decode steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) begun: Micros,
    /// End of the first step of the leap.
    first_ends: Micros,
    /// End of the last.
    pub(super) ends: Micros,
    /// Steps of the leap.
    count: u32,
    /// Its prediction, or that of the first, without what mixing costs.
    plain_us: u64,
    /// What the worker expects of it, or of the first.
    pub(super) expected_us: u64,
    /// Prompt tokens.
    pub(super) prefill: u32,
    /// Sequences that decode.
    pub(super) decode_seqs: u32,
}

/// A step that is over, for the next report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Over {
    pub(super) us: u64,
    pub(super) expected_us: u64,
    pub(super) prefill: u32,
    pub(super) decode_seqs: u32,
}

impl Worker {
    /// Carries on: ends the step whose time has come, begins the next.
    pub(crate) fn turn(&mut self, now: Micros) {
        if self.step.as_ref().is_some_and(|step| step.ends <= now) {
            self.finish(now);
        }
        if self.step.is_none() {
            self.begin(now);
        }
        self.leap();
    }

    /// Ends the steps of a leap that are over, so that the one under way is the last.
    pub(super) fn settle(&mut self, now: Micros) {
        let Some(step) = self.step else { return };
        if step.count <= 1 {
            return;
        }
        let (mut begun, mut ends, mut count) = (step.begun, step.first_ends, step.count);
        while count > 1 && ends <= now {
            self.count_decode(ends.since(begun).0);
            self.decoding.advance(ends);
            let pages = self.decoding.pages_for(0);
            self.own(pages);
            begun = ends;
            ends = ends.plus(Micros(self.real_us(self.decode_work(0))));
            count -= 1;
        }
        self.step = Some(Step {
            begun,
            first_ends: ends,
            ends,
            count: 1,
            ..step
        });
    }

    fn begin(&mut self, now: Micros) {
        self.join(now);
        self.freeze_ready(now);
        let choice = loop {
            let choice = self.choose(now);
            if self.take_pages(choice) {
                break choice;
            }
        };
        if choice == StepChoice::Idle {
            return;
        }
        let decode = if choice.has_decodes() {
            self.decode_work(0)
        } else {
            StepWork::default()
        };
        let work = self.cut(choice.prompt_tokens().0, decode);
        let (has_decodes, has_prompts) = (self.decoding.seqs > 0, !self.prompts.is_empty());
        self.belief.began(choice, has_decodes, has_prompts);
        let plain_us = self.plain_us(work);
        let ends = now.plus(Micros(self.real_us(work)));
        self.step = Some(Step {
            begun: now,
            first_ends: ends,
            ends,
            count: 1,
            plain_us,
            expected_us: self.belief.expected_us(plain_us, work.is_mixed()),
            prefill: work.prefill_tokens,
            decode_seqs: work.decode_seqs,
        });
    }

    /// Those that came decode from here on.
    fn join(&mut self, now: Micros) {
        for slot in self.joining.drain(..) {
            let Some(seat) = self.seats.get_mut(slot as usize).and_then(Option::as_mut) else {
                continue;
            };
            let left = seat.output - seat.pos;
            seat.phase = Phase::Decode;
            seat.resident = self
                .decoding
                .join(now, slot, seat.computed, left, seat.pages);
        }
    }

    /// Pages that the step fills for the first time. False: somebody went for them, look again.
    fn take_pages(&mut self, choice: StepChoice) -> bool {
        let mut pages = if choice.has_decodes() {
            self.decoding.pages_for(0)
        } else {
            0
        };
        let size = self.spec.page_tokens;
        let parts: Vec<(u32, u32)> = self
            .parts(choice.prompt_tokens().0)
            .map(|(slot, seat, tokens)| {
                let wanted = (seat.computed + tokens).div_ceil(size);
                (slot, wanted.saturating_sub(seat.pages))
            })
            .filter(|&(_, more)| more > 0)
            .collect();
        pages += parts.iter().map(|&(_, more)| more).sum::<u32>();
        if pages > self.pages_free() {
            self.preempt();
            return false;
        }
        self.own(pages);
        for (slot, more) in parts {
            if let Some(seat) = self.seat_mut(slot) {
                seat.pages += more;
            }
        }
        true
    }

    /// Which prompts get how many of so many tokens, oldest first.
    fn parts(&self, tokens: u32) -> impl Iterator<Item = (u32, &Seat, u32)> {
        let mut left = tokens;
        self.prompts.iter().map_while(move |&slot| {
            let seat = self.seats.get(slot as usize)?.as_ref()?;
            let part = left.min(seat.left());
            left -= part;
            (part > 0).then_some((slot, seat, part))
        })
    }

    /// Notes the parts of a step; returns it with them.
    fn cut(&mut self, tokens: u32, mut work: StepWork) -> StepWork {
        let mut chunks = std::mem::take(&mut self.chunks);
        for (slot, seat, part) in self.parts(tokens) {
            chunks.push((slot, seat.life, part));
            work = work.with_prompts(&[(part, seat.computed)], part);
        }
        self.chunks = chunks;
        work
    }

    /// Makes the step a leap, if nothing can happen in the next ones.
    fn leap(&mut self) {
        let Some(mut step) = self.step else { return };
        let is_quiet = step.prefill == 0
            && step.count == 1
            && self.prompts.is_empty()
            && self.joining.is_empty()
            && self.shipping.is_empty()
            && self.said.is_empty();
        if !is_quiet {
            return;
        }
        let tell_at = self.told_at.plus(self.terms.tell_every);
        let due = self.decoding.next_due().unwrap_or(u64::MAX);
        let mut free = self.pages_free();
        while step.count < LEAP_MAX {
            let ahead = u64::from(step.count);
            let pages = self.decoding.pages_for(step.count);
            if due <= self.decoding.steps + ahead || step.ends >= tell_at || pages > free {
                break;
            }
            free -= pages;
            let us = self.real_us(self.decode_work(ahead));
            step.ends = step.ends.plus(Micros(us));
            step.count += 1;
        }
        self.step = Some(step);
    }

    /// The decode step after `ahead` more.
    pub(super) fn decode_work(&self, ahead: u64) -> StepWork {
        let seqs = self.decoding.seqs;
        StepWork::decode(seqs, self.decoding.context + ahead * u64::from(seqs))
    }

    /// Time that a step really takes.
    #[inline]
    pub(super) fn real_us(&self, work: StepWork) -> u64 {
        let us = self.spec.timings.work_us(work);
        let us = match self.slowness {
            Some(ratio) => whole_us(us as f64 * ratio),
            None => us,
        };
        us.max(1)
    }

    fn finish(&mut self, now: Micros) {
        self.settle(now);
        let Some(step) = self.step.take() else { return };
        let us = step.ends.since(step.begun).0;
        self.said.over = Over {
            us,
            expected_us: step.expected_us,
            prefill: step.prefill,
            decode_seqs: step.decode_seqs,
        };
        if step.prefill == 0 {
            self.count_decode(us);
        } else {
            self.count_prefill(&step, us);
        }
        if step.decode_seqs > 0 {
            self.decoding.advance(now);
            self.end_due();
        }
        if step.prefill > 0 {
            self.finish_chunks(now);
            self.said.is_urgent = true;
        }
        if now >= self.told_at.plus(self.terms.tell_every) {
            self.tell_residents(now);
        }
    }

    fn count_decode(&mut self, us: u64) {
        self.steps += 1;
        self.outcome.steps += 1;
        self.outcome.decode_us += us;
        self.outcome.decode_tokens += u64::from(self.decoding.seqs);
    }

    fn count_prefill(&mut self, step: &Step, us: u64) {
        self.steps += 1;
        let outcome = &mut self.outcome;
        outcome.steps += 1;
        outcome.prefill_tokens += u64::from(step.prefill);
        if step.decode_seqs > 0 {
            self.belief.measured(step.plain_us, us);
            outcome.mixed_us += us;
            outcome.decode_tokens += u64::from(self.decoding.seqs);
        } else {
            outcome.prefill_us += us;
            outcome.pauses += u64::from(self.decoding.seqs > 0);
        }
    }

    /// Those that made their last token end; those whose pages are full begin to take more.
    fn end_due(&mut self) {
        while let Some((_, slot, join, what)) = self.decoding.pop_due() {
            let seat = self.seats.get_mut(slot as usize).and_then(Option::as_mut);
            let decodes =
                |seat: &&mut Seat| (seat.phase, seat.resident.join) == (Phase::Decode, join);
            let Some(seat) = seat.filter(decodes) else {
                continue;
            };
            match what {
                Due::Grow => self.decoding.grow(&mut seat.resident),
                Due::Last => {
                    let why = seat.end();
                    self.close(slot, why);
                }
            }
        }
    }

    /// The prompts of the step are so much further; who is through makes its first token.
    fn finish_chunks(&mut self, now: Micros) {
        let mut chunks = std::mem::take(&mut self.chunks);
        for (slot, life, tokens) in chunks.drain(..) {
            let seat = self.seats.get_mut(slot as usize).and_then(Option::as_mut);
            let Some(seat) = seat.filter(|seat| seat.life == life) else {
                continue;
            };
            seat.computed += tokens;
            self.queued -= u64::from(tokens);
            let is_through = seat.computed == seat.todo;
            if is_through {
                seat.phase = Phase::Joining;
                seat.pos += 1;
                let (pos, why) = (seat.pos, seat.end());
                let is_last = pos == seat.output;
                // A first token goes out at once.
                self.said.tokens_of(slot, seat, pos);
                self.prompts.retain(|&other| other != slot);
                self.joining.push(slot);
                self.keep_prompt(slot);
                self.outcome.decode_tokens += 1;
                if is_last {
                    self.close(slot, why);
                    continue;
                }
            }
            self.write(now, slot);
            if is_through && self.ships_on(now, slot) {
                self.shipping.push(slot);
            }
        }
        self.chunks = chunks;
    }
}
