//! The choice itself; its definition stands at the module's head.

use super::{
    Belief, DECODES_MAX, MIXED_TOKENS_MIN, Residents, StepChoice, StepCost, StepMode, StepPolicy,
    StepWork, whole_us,
};
use crate::units::{Micros, Tokens};

/// Decode steps above this part of the pace leave no slack to pause in.
const FULL_STEP_RATIO: f64 = 0.95;

/// What a worker sees at a step boundary.
#[derive(Clone, Copy, Debug)]
pub struct StepView<'a> {
    /// When.
    pub now: Micros,
    /// It is labelled decode: others may come at any time.
    pub is_decode: bool,
    /// Most tokens in a step.
    pub tokens_max: u32,
    /// Those that decode.
    pub residents: &'a Residents,
    /// How many they are, and the tokens of KV that they read together.
    pub decode_seqs: u32,
    /// See `decode_seqs`.
    pub decode_context: u64,
    /// Prompts in the order in which they are computed: tokens to do, tokens done before.
    pub prompts: &'a [(u32, u32)],
}

/// What to compute next. Pure: [`Belief::began`] is told what came of it.
pub fn choose(
    policy: &StepPolicy,
    belief: &Belief,
    view: &StepView<'_>,
    cost: &impl StepCost,
) -> StepChoice {
    let asked = Asked::new(policy, belief, view, cost);
    if asked.todo == 0 {
        return if view.decode_seqs > 0 {
            StepChoice::Decode
        } else {
            StepChoice::Idle
        };
    }
    if view.decode_seqs == 0 {
        return StepChoice::Prefill(Tokens(asked.nobody_decodes()));
    }
    let chunk = match policy.mode {
        StepMode::Fill => asked.beside,
        StepMode::Chunk => policy.chunk_tokens.0.saturating_sub(view.decode_seqs),
        StepMode::ChunkInTime => asked.chunk(asked.tau_us),
        StepMode::PauseOrMix => return asked.pause_or_mix(),
    };
    if asked.beside == 0 {
        StepChoice::Decode
    } else {
        asked.mixed(chunk)
    }
}

/// A question, and what all answers need.
struct Asked<'a, C> {
    policy: &'a StepPolicy,
    belief: &'a Belief,
    view: &'a StepView<'a>,
    cost: &'a C,
    /// Tokens of all prompts.
    todo: u32,
    /// Prompt tokens that fit beside those that decode, and alone.
    beside: u32,
    most: u32,
    tpot: Micros,
    tau_us: u64,
}

impl<'a, C: StepCost> Asked<'a, C> {
    fn new(
        policy: &'a StepPolicy,
        belief: &'a Belief,
        view: &'a StepView<'a>,
        cost: &'a C,
    ) -> Self {
        let sum = |sum: u32, &(todo, _): &(u32, u32)| sum.saturating_add(todo);
        let todo = view.prompts.iter().fold(0, sum);
        let decode = StepWork::decode(view.decode_seqs, view.decode_context);
        let tpot = view.residents.tpot_min(cost.plain_us(decode));
        let tpot = tpot.unwrap_or(policy.tpot);
        Self {
            policy,
            belief,
            view,
            cost,
            todo,
            beside: todo.min(view.tokens_max.saturating_sub(view.decode_seqs)),
            most: todo.min(view.tokens_max),
            tpot,
            tau_us: policy.tau_us(tpot),
        }
    }

    fn alone_us(&self, tokens: u32) -> u64 {
        let nobody = StepWork::default();
        self.cost
            .plain_us(nobody.with_prompts(self.view.prompts, tokens))
    }

    fn plain_us(&self, tokens: u32) -> u64 {
        let decode = StepWork::decode(self.view.decode_seqs, self.view.decode_context);
        self.cost
            .plain_us(decode.with_prompts(self.view.prompts, tokens))
    }

    fn mixed_us(&self, tokens: u32) -> u64 {
        self.belief.expected_us(self.plain_us(tokens), tokens > 0)
    }

    fn nobody_decodes(&self) -> u32 {
        match self.policy.mode {
            StepMode::Chunk => at_least(self.policy.chunk_tokens.0, self.most),
            StepMode::PauseOrMix if self.view.is_decode => {
                at_least(self.slice(self.policy.idle_slice_max.0), self.most)
            }
            _ => self.most,
        }
    }

    /// The largest slice that takes at most so long alone.
    fn slice(&self, limit_us: u64) -> u32 {
        largest(self.most, |tokens| self.alone_us(tokens) <= limit_us)
    }

    /// The largest chunk whose mixed step takes at most so long.
    fn chunk(&self, limit_us: u64) -> u32 {
        largest(self.beside, |tokens| self.mixed_us(tokens) <= limit_us)
    }

    fn mixed(&self, chunk: u32) -> StepChoice {
        StepChoice::Mixed(Tokens(at_least(chunk, self.beside)))
    }

    fn pause_or_mix(&self) -> StepChoice {
        let decode_us = self.plain_us(0);
        let pause_max = self.policy.pause_max.0;
        let chunk = self.chunk(if decode_us > self.tpot.0 {
            decode_us.saturating_add(pause_max)
        } else {
            self.tau_us
        });
        let pace_us = self.policy.pace_us(self.tpot) as f64;
        let is_due = self.is_due();
        if self.beside == 0 {
            if is_due {
                return StepChoice::Prefill(Tokens(at_least(0, self.most)));
            }
        } else if is_due
            || decode_us > whole_us(FULL_STEP_RATIO * pace_us)
            || self.is_mixing_cheaper(chunk, decode_us)
        {
            return self.mixed(chunk);
        }
        self.pause(decode_us).unwrap_or(StepChoice::Decode)
    }

    /// It is time to mix, whatever it costs: to learn the penalty, or because a prompt waits.
    fn is_due(&self) -> bool {
        let pauses = self.belief.pauses.saturating_add(1);
        pauses >= self.policy.probe_every || self.belief.decodes >= DECODES_MAX
    }

    /// Prompt tokens per microsecond on top of the decode step, against those of a pause.
    fn is_mixing_cheaper(&self, chunk: u32, decode_us: u64) -> bool {
        let slice = self.slice(self.policy.pause_max.0);
        let extra_us = self.mixed_us(chunk).saturating_sub(decode_us);
        let alone_us = self.alone_us(slice);
        let product = |tokens: u32, us: u64| u128::from(tokens) * u128::from(us);
        chunk > 0 && product(chunk, alone_us) >= product(slice, extra_us)
    }

    /// A slice alone, if those that decode can spare the time.
    fn pause(&self, decode_us: u64) -> Option<StepChoice> {
        let view = self.view;
        let quantile = self.policy.slack_quantile;
        let slack = view.residents.slack_us(view.now, decode_us, quantile)?;
        let slack = u64::try_from(slack).ok()?;
        let gap = view.residents.gap(view.now);
        let left = self.policy.pause_max.since(gap).0;
        let time = slack.min(left);
        let tokens = self.slice(time);
        let first = view.prompts.iter().find(|(todo, _)| *todo > 0)?;
        let is_worth = time >= self.policy.pause_min.0 || tokens >= first.0;
        (tokens > 0 && is_worth).then_some(StepChoice::Prefill(Tokens(tokens)))
    }
}

fn at_least(tokens: u32, most: u32) -> u32 {
    tokens.max(MIXED_TOKENS_MIN).min(most)
}

/// The largest of `0 ..= high` for which it fits; 0 need not. What fits must fit for all below.
fn largest(high: u32, fits: impl Fn(u32) -> bool) -> u32 {
    if fits(high) {
        return high;
    }
    let (mut low, mut high) = (0, high);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
