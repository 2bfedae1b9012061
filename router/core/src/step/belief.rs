//! What a worker believes of mixed steps, and what it has chosen of late.

use super::{StepChoice, StepPolicy};

/// Share of the newest mixed step in the belief.
const WEIGHT: f64 = 0.05;
/// One step counts as no further than this from the belief: a page fault or a neighbour's burst
/// moves it by 0.05.
const OUTLIER_MAX: f64 = 1.0;
/// Mixing is not believed to save anything: that is an error of the prediction.
const PENALTY_MIN: f64 = 0.0;
/// Nor to cost more than three times the sum.
const PENALTY_MAX: f64 = 2.0;

/// How much dearer mixed steps are believed to be, learnt from each, and the counters by which they
/// are tried from time to time. Of one worker, for as long as its process lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Belief {
    penalty: f64,
    /// Pauses since the last mixed step.
    pub(super) pauses: u32,
    /// Decode steps since a prompt that waits last moved.
    pub(super) decodes: u32,
    steps_mixed: u64,
    steps_paused: u64,
}

impl Belief {
    /// Before a mixed step was measured.
    pub fn new(policy: &StepPolicy) -> Self {
        let start = policy.mixed_penalty_start;
        Self {
            // Also where `start` is no number.
            penalty: if start >= PENALTY_MIN {
                start.min(PENALTY_MAX)
            } else {
                PENALTY_MIN
            },
            pauses: 0,
            decodes: 0,
            steps_mixed: 0,
            steps_paused: 0,
        }
    }

    /// `p`: a mixed step takes `1 + p` times the sum.
    pub const fn penalty_ratio(&self) -> f64 {
        self.penalty
    }

    /// `p` in thousandths, for the report.
    #[expect(clippy::cast_possible_truncation, reason = "0 to 2,000")]
    pub fn penalty_permille(&self) -> u32 {
        super::whole_us(self.penalty * 1_000.0) as u32
    }

    /// Steps that computed prompts beside those that decode.
    pub const fn steps_mixed(&self) -> u64 {
        self.steps_mixed
    }

    /// Steps that computed prompts while those that decode waited.
    pub const fn steps_paused(&self) -> u64 {
        self.steps_paused
    }

    /// A step of this kind begins. `has_decodes`, `has_prompts`: somebody ran, a prompt waited.
    pub const fn began(&mut self, choice: StepChoice, has_decodes: bool, has_prompts: bool) {
        match choice {
            StepChoice::Mixed(_) => {
                self.steps_mixed += 1;
                self.pauses = 0;
                self.decodes = 0;
            }
            StepChoice::Prefill(_) if has_decodes => {
                self.steps_paused += 1;
                self.pauses = self.pauses.saturating_add(1);
                self.decodes = 0;
            }
            StepChoice::Decode if has_prompts => self.decodes = self.decodes.saturating_add(1),
            StepChoice::Decode | StepChoice::Prefill(_) | StepChoice::Idle => self.decodes = 0,
        }
    }

    /// A mixed step is over. `plain_us`: its prediction without the penalty; 0 teaches nothing.
    pub fn measured(&mut self, plain_us: u64, took_us: u64) {
        if plain_us == 0 {
            return;
        }
        let seen = took_us as f64 / plain_us as f64 - 1.0;
        let off = (seen - self.penalty).clamp(-OUTLIER_MAX, OUTLIER_MAX);
        self.penalty = (self.penalty + WEIGHT * off).clamp(PENALTY_MIN, PENALTY_MAX);
    }

    /// Prediction of a step: without what mixing costs, or with it.
    pub fn expected_us(&self, plain_us: u64, is_mixed: bool) -> u64 {
        if is_mixed {
            super::whole_us(plain_us as f64 * (1.0 + self.penalty))
        } else {
            plain_us
        }
    }
}
