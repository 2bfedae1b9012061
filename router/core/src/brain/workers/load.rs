//! What a worker's load means in time: when it is free, how long its steps take, how much slower a
//! prompt is beside those that decode.

use super::Worker;
use crate::{
    brain::{explain::Verdict, peak::Stay, place::Need, workers::residents::Resident},
    ids::SlotId,
    policy::PolicyConfig,
    step::StepMode,
    units::{Micros, Tokens},
};

/// A target that no step could meet counts as so many times the step of one sequence alone: holding
/// others back would serve nobody.
const STEP_ALONE_RATIO: u64 = 2;

/// How much slower a prompt is at most taken to be beside those that decode.
const SLOW_MAX: f64 = 8.0;

/// The same beside nobody, at a worker labelled decode: it computes short slices, and sequences
/// arrive meanwhile.
const SLOW_IDLE: f64 = 1.3;

/// Of a prompt between decode steps: what its slices cost besides.
const SLOW_PAUSES: f64 = 1.15;

/// A prompt by which workers are compared before the one at hand is known.
const PROMPT: Tokens = Tokens(512);

impl Worker {
    /// What is asked again and again until more is learnt.
    pub(super) fn predict(&mut self) {
        self.prompt_us = self.prompt_us(PROMPT);
        self.step_alone_us = self.learned.decode_us(&self.facts.timings, 1, 0);
    }

    /// A seat was planned.
    pub(in crate::brain) fn moves_in(&mut self, slot: SlotId, resident: Resident, now: Micros) {
        self.residents.add(slot, resident);
        if resident.work_us > 0 {
            let slow_us = Micros(resident.work_us).times(self.slow_or_max());
            self.busy_until = self.busy_until.max(now).plus(slow_us);
            self.busy_least = self.busy_least.max(now).plus(Micros(resident.work_us));
        }
    }

    /// Time of a prompt of so many tokens, computed alone.
    pub(in crate::brain) fn prompt_us(&self, tokens: Tokens) -> Micros {
        let facts = &self.facts;
        self.learned
            .prompt_us(&facts.timings, tokens, facts.batch_tokens_max)
    }

    /// Predicted decode step with `more` sequences of `kv` tokens together.
    pub(in crate::brain) fn decode_us(&self, more: u32, kv: u64) -> Micros {
        let reported = self.load.decode_step_us;
        if more == 0 && reported > 0 {
            return Micros(u64::from(reported));
        }
        let (seqs, context) = (self.residents.seqs(), self.residents.context());
        let seqs = seqs.saturating_add(more);
        let timings = &self.facts.timings;
        self.learned
            .decode_us(timings, seqs, context.saturating_add(kv))
    }

    /// Time per token that its steps are held to: the tightest target of those that decode here
    /// and of a newcomer, if one is asked about. What not even the step of one sequence meets is
    /// lost, and counts only where all is.
    pub(in crate::brain) fn target(&self, newcomer: Option<Micros>) -> Micros {
        let alone = self.step_alone_us;
        let tightest = self.residents.tightest(alone);
        let newcomer = newcomer.filter(|&target| target >= alone);
        let met = match (tightest, newcomer) {
            (Some(tightest), Some(newcomer)) => Some(tightest.min(newcomer)),
            (tightest, newcomer) => tightest.or(newcomer),
        };
        met.unwrap_or_default()
            .max(Micros(alone.0.saturating_mul(STEP_ALONE_RATIO)))
    }

    /// Prompts take longer than alone, beside those that decode, by how steps are chosen. `None`:
    /// they leave no time.
    fn slow_beside(&self, rules: &PolicyConfig) -> Option<f64> {
        let target = self.target(None).0 as f64;
        let step = self.decode_us(0, 0).0 as f64;
        let pace = rules.step.pace_ratio * target;
        let between = (pace > step).then(|| SLOW_PAUSES * pace / (pace - step));
        let dearer = 1.0 + self.mixed_penalty(rules);
        let tau = rules.step.mixed_step_ratio * target;
        let left = tau / dearer - step;
        let mixed = (left > 0.0).then(|| tau / left);
        let chunk = match rules.step.mode {
            StepMode::PauseOrMix => {
                return match (between, mixed) {
                    (Some(a), Some(b)) => Some(if a < b { a } else { b }),
                    (a, b) => a.or(b),
                };
            }
            StepMode::ChunkInTime => return mixed,
            StepMode::Fill => self.facts.batch_tokens_max,
            StepMode::Chunk => rules.step.chunk_tokens,
        };
        let alone = self.prompt_us(chunk).0.max(1) as f64;
        Some(dearer * (alone + step) / alone)
    }

    /// How much longer a prompt takes that is stolen.
    pub(in crate::brain) fn slow(&self, rules: &PolicyConfig) -> Option<f64> {
        if self.residents.running() == 0 {
            Some(SLOW_IDLE)
        } else {
            self.slow_beside(rules)
        }
    }

    fn slow_or_max(&self) -> f64 {
        if self.residents.running() == 0 {
            return 1.0;
        }
        let slow = self.slow_beside(&self.rules);
        slow.unwrap_or(SLOW_MAX).clamp(1.0, SLOW_MAX)
    }

    fn mixed_penalty(&self, rules: &PolicyConfig) -> f64 {
        if self.load.step > 0 {
            f64::from(self.load.mixed_penalty_permille) / 1e3
        } else {
            rules.step.mixed_penalty_start
        }
    }

    /// Predicted time until its prompts are computed, if nothing else runs there.
    pub(in crate::brain) fn work_us(&self) -> Micros {
        let (planned, open) = self.slots.prefill();
        let (left, all) = (self.prefill_pending(), planned.saturating_add(open));
        if left >= all {
            return Micros(self.residents.work_us());
        }
        let part = left as f64 / all as f64;
        Micros(self.residents.work_us()).times(part)
    }

    /// After a report was read: a step has ended just now, so what is left begins now.
    pub(in crate::brain) fn correct(&mut self, now: Micros) {
        let work = self.work_us();
        self.busy_least = now.plus(work);
        self.busy_until = if work == Micros(0) {
            now
        } else {
            now.plus(work.times(self.slow_or_max()))
        };
    }

    /// Predicted time from now to the end of such a prompt, if it is bound now.
    pub(in crate::brain) fn finish_us(&self, tokens: Tokens) -> Micros {
        self.finish_us_of(self.prompt_us(tokens))
    }

    /// The same of a prompt that takes so long alone.
    pub(in crate::brain) fn finish_us_of(&self, alone: Micros) -> Micros {
        self.work_us().plus(alone).times(self.slow_or_max())
    }

    /// Predicted time from now to the end of a prompt that goes next, if nobody decodes: it is not
    /// sooner in any order of work. `cached` of its tokens need not be computed.
    pub(in crate::brain) fn least_us(&self, tokens: Tokens, cached: Tokens, now: Micros) -> Micros {
        let all = self.prompt_us(tokens);
        // What is left attends to what is cached, and costs a step of its own.
        let left = all.since(self.prompt_us(cached));
        let left = left.plus(self.prompt_us(Tokens(1))).min(all);
        self.busy_least.since(now).plus(left)
    }

    /// Whether a sequence can decode here, and if not, why.
    pub(in crate::brain) fn fits(&self, need: &Need<'_>) -> Result<(), Verdict> {
        if need.ask.len() > self.len_max() {
            return Err(Verdict::TooLong);
        }
        if !self.has_room(&need.ask, Stay::Import) {
            return Err(Verdict::Kv);
        }
        // Alone it fits whatever it is.
        if self.residents.seqs() == 0 {
            return Ok(());
        }
        if !self.is_below(self.rules.place_kv_ratio, need.kv()) {
            return Err(Verdict::Kv);
        }
        let ratio = self.rules.place_step_ratio;
        if !self.is_in_step(ratio, need.kv(), Some(need.tpot)) {
            return Err(Verdict::Step);
        }
        Ok(())
    }

    /// With so many tokens more its pool is filled up to that part at most.
    pub(in crate::brain) fn is_below(&self, ratio: f64, kv: u64) -> bool {
        let size = u64::from(self.facts.page_size.max(1));
        let pool = u64::from(self.facts.pages_total.0).saturating_mul(size) as f64;
        self.residents.kv().saturating_add(kv) as f64 <= ratio * pool
    }

    /// With one sequence more its decode step stays below that part of the target; 0: no limit.
    pub(in crate::brain) fn is_in_step(&self, ratio: f64, kv: u64, tpot: Option<Micros>) -> bool {
        ratio <= 0.0 || self.decode_us(1, kv).0 as f64 <= ratio * self.target(tpot).0 as f64
    }
}
