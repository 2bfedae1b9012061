//! What reports teach about the step times of one worker: how far its real steps are from the
//! predicted ones, or, where nobody predicts them, how long they take.
//!
//! A worker that knows its timings says what it had expected of a step; the brain keeps the ratio
//! of real to expected apart for prompts and for decoding. One that knows none (a model on a CPU)
//! is known by what its steps took. Mixed steps teach no ratio: their penalty is learnt by the
//! worker. Every figure stays within named bounds whatever a report says, and one report moves it
//! by a tenth of a bounded step, so that a lie or a hiccup does not overturn it.

use super::{Timings, whole_us};
use crate::{
    fleet::WorkerLoad,
    step::StepWork,
    units::{Micros, Tokens},
};

/// A worker counts as at most so many times faster, or slower, than its timings.
pub const RATIO_MIN: f64 = 0.25;
/// See [`RATIO_MIN`].
pub const RATIO_MAX: f64 = 16.0;
/// One step moves a ratio as if it had been at most so many times off.
const SURPRISE_MAX: f64 = 4.0;
/// Weight of the last step.
const WEIGHT: f64 = 0.1;
/// Longest time per prompt token, and per decode step, that is believed.
const US_MAX: f64 = 10_000_000.0;

/// Corrections of one worker's predictions, and its rates.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// Number of the last step that was heard of.
    step: u64,
    prefill_ratio: f64,
    decode_ratio: f64,
    /// Of late: microseconds and prompt tokens of steps that computed prompts.
    prompts: Mean,
    /// The same: microseconds and sequences of steps that only decoded, per step.
    decodes: Mean,
}

/// Two sums that forget.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean {
    steps: f64,
    us: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, us: f64, count: f64) {
        self.steps = self.steps * (1.0 - WEIGHT) + 1.0;
        self.us = self.us * (1.0 - WEIGHT) + us;
        self.count = self.count * (1.0 - WEIGHT) + count;
    }
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            step: 0,
            prefill_ratio: 1.0,
            decode_ratio: 1.0,
            prompts: Mean::default(),
            decodes: Mean::default(),
        }
    }
}

impl Learned {
    /// Takes in what a report says of the last step. The same step twice counts once; an idle
    /// report teaches nothing. True: steps that somebody predicts are predicted otherwise now.
    pub fn hear(&mut self, load: &WorkerLoad) -> bool {
        if load.step <= self.step || load.step_us == 0 {
            return false;
        }
        let before = self.ratios();
        self.step = load.step;
        let real = f64::from(load.step_us).min(US_MAX);
        let expected = f64::from(load.step_expected_us);
        let (tokens, seqs) = (
            f64::from(load.step_prefill_tokens.0),
            f64::from(load.step_decode_seqs),
        );
        match (tokens > 0.0, seqs > 0.0) {
            (true, false) => {
                correct(&mut self.prefill_ratio, real, expected);
                self.prompts.add(real, tokens);
            }
            (false, true) => {
                correct(&mut self.decode_ratio, real, expected);
                self.decodes.add(real, seqs);
            }
            (true, true) => {
                let prompts = real - self.decode_step_of(seqs);
                self.prompts
                    .add(if prompts > 0.0 { prompts } else { 0.0 }, tokens);
            }
            (false, false) => {}
        }
        before != self.ratios()
    }

    /// Time of a prompt of so many tokens, computed alone, in steps of at most `batch` tokens.
    pub fn prompt_us(&self, timings: &Timings, tokens: Tokens, batch: Tokens) -> Micros {
        if timings.is_instant() {
            let per_token = quotient(self.prompts.us, self.prompts.count);
            return Micros(whole_us(per_token * f64::from(tokens.0)));
        }
        let steps = tokens.0.div_ceil(batch.0.max(1)).max(1);
        let begins = timings.step_prefill_us * f64::from(steps - 1);
        let alone = timings.prefill_us(tokens).0 as f64;
        Micros(whole_us((alone + begins) * self.prefill_ratio))
    }

    /// Time of a step that decodes so many sequences of so much context together.
    pub fn decode_us(&self, timings: &Timings, seqs: u32, context: u64) -> Micros {
        if seqs == 0 {
            return Micros(0);
        }
        if timings.is_instant() {
            return Micros(whole_us(self.decode_step_of(f64::from(seqs))));
        }
        let step = timings.plain_us(StepWork::decode(seqs, context));
        Micros(whole_us(step as f64 * self.decode_ratio))
    }

    /// How much longer prompts and decode steps take than the timings say.
    pub const fn ratios(&self) -> (f64, f64) {
        (self.prefill_ratio, self.decode_ratio)
    }

    /// Without timings: the step of late, and in proportion for more sequences than it had. An
    /// upper bound, as a step reads the weights once.
    fn decode_step_of(&self, seqs: f64) -> f64 {
        let step = quotient(self.decodes.us, self.decodes.steps);
        let had = quotient(self.decodes.count, self.decodes.steps);
        if seqs > had && had > 0.0 {
            step * seqs / had
        } else {
            step
        }
    }
}

/// Moves a ratio towards what one step showed; nothing to learn where nothing was expected.
fn correct(ratio: &mut f64, real: f64, expected: f64) {
    if expected > 0.0 {
        let low = *ratio / SURPRISE_MAX;
        let seen = (real / expected).clamp(low, *ratio * SURPRISE_MAX);
        *ratio = (*ratio + WEIGHT * (seen - *ratio)).clamp(RATIO_MIN, RATIO_MAX);
    }
}

/// At most [`US_MAX`]; zero before anything was seen.
fn quotient(sum: f64, count: f64) -> f64 {
    if count > 0.0 {
        (sum / count).min(US_MAX)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(step: u64, tokens: u32, seqs: u32, real: u32, expected: u32) -> WorkerLoad {
        WorkerLoad {
            step,
            step_us: real,
            step_expected_us: expected,
            step_prefill_tokens: Tokens(tokens),
            step_decode_seqs: seqs,
            ..WorkerLoad::default()
        }
    }

    fn prompt(learned: &Learned, timings: &Timings) -> f64 {
        learned.prompt_us(timings, Tokens(1_000), Tokens(4_096)).0 as f64
    }

    #[test]
    fn a_straggler_is_seen_and_forgotten_when_it_is_well_again() {
        let timings = Timings::h100_8b();
        let (mut learned, fresh) = (Learned::default(), Learned::default());
        let well = prompt(&fresh, &timings);
        for step in 1..=40 {
            learned.hear(&load(step, 1_000, 0, 90_000, 30_000));
        }
        let ratio = prompt(&learned, &timings) / well;
        assert!((2.8..=3.01).contains(&ratio), "{ratio}");
        assert!(
            learned.ratios().1.to_bits() == 1.0_f64.to_bits(),
            "decoding is apart"
        );
        for step in 41..=100 {
            learned.hear(&load(step, 1_000, 0, 30_000, 30_000));
        }
        let ratio = prompt(&learned, &timings) / well;
        assert!((0.99..=1.05).contains(&ratio), "{ratio}");
    }

    #[test]
    fn no_report_moves_a_figure_out_of_its_bounds() {
        let timings = Timings::h100_8b();
        let mut learned = Learned::default();
        learned.hear(&load(1, 1, 0, u32::MAX, 1));
        assert!(learned.ratios().0 <= 1.0 + WEIGHT * SURPRISE_MAX);
        for step in 2..=500 {
            learned.hear(&load(step, 1, 0, u32::MAX, 1));
            learned.hear(&load(step + 500, 0, u32::MAX, 1, u32::MAX));
        }
        assert!(learned.ratios().0 <= RATIO_MAX && learned.ratios().1 >= RATIO_MIN);
        let mut lied = Learned::default();
        for step in 1..=500 {
            lied.hear(&load(step, 0, 1, 1, u32::MAX));
        }
        assert!(lied.ratios().1 - RATIO_MIN < 1e-9);
        let instant = Timings::instant();
        let longest = learned.prompt_us(&instant, Tokens(u32::MAX), Tokens(0));
        assert!(longest.0 <= 1 << 53);
        assert!(learned.decode_us(&timings, u32::MAX, u64::MAX).0 <= 1 << 53);
    }

    #[test]
    fn the_same_step_counts_once_and_idle_reports_teach_nothing() {
        let mut learned = Learned::default();
        assert!(learned.hear(&load(5, 100, 0, 200, 100)), "twice as slow");
        let once = learned.clone();
        assert!(!learned.hear(&load(5, 100, 0, 200, 100)), "heard already");
        learned.hear(&load(4, 100, 0, 900, 100));
        learned.hear(&load(6, 100, 0, 0, 100));
        assert_eq!(learned, once);
    }

    #[test]
    fn without_timings_the_rates_of_late_count() {
        let timings = Timings::instant();
        let mut learned = Learned::default();
        assert!(prompt(&learned, &timings) < 0.5);
        for step in 1..=20 {
            // 300 ms for 64 prompt tokens; 40 ms for 2 sequences.
            learned.hear(&load(2 * step, 64, 0, 300_000, 0));
            learned.hear(&load(2 * step + 1, 0, 2, 40_000, 0));
        }
        assert!((prompt(&learned, &timings) - 4_687_500.0).abs() < 1.0);
        assert_eq!(learned.decode_us(&timings, 1, 0).0, 40_000);
        assert_eq!(learned.decode_us(&timings, 4, 0).0, 80_000);
        // Of a mixed step, what it took beyond the decoding is the prompt's.
        let before = prompt(&learned, &timings);
        learned.hear(&load(99, 64, 2, 340_000, 0));
        assert!((prompt(&learned, &timings) - before).abs() < 1.0);
    }
}
