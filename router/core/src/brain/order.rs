//! What a prompt is worth of the order: its predicted prefill and its targets.

use super::{
    Brain,
    queue::{Lane, OpenLanes},
};
use crate::{request::RequestFacts, units::Micros};

/// What is asked of a request's first and later tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Targets {
    /// Predicted prefill.
    pub(super) prefill: Micros,
    /// When its first token is due.
    pub(super) ttft_due: Micros,
    /// Mean time per later token.
    pub(super) tpot: Micros,
}

impl Brain {
    /// The request's own targets; the policy's where nobody asked for any.
    pub(super) fn targets(&self, facts: &RequestFacts) -> Targets {
        let policy = &self.config.policy;
        let prefill = self.workers.prefill_us(facts.prompt_tokens);
        let ttft = facts.slo.ttft.unwrap_or_else(|| {
            let scaled = times(prefill, policy.ttft_prefill_ratio);
            policy.ttft.max(scaled)
        });
        Targets {
            prefill,
            ttft_due: self.now.plus(ttft),
            tpot: facts.slo.tpot.unwrap_or(policy.tpot),
        }
    }

    /// Lanes from which may be placed now.
    pub(super) fn open_lanes(&self) -> OpenLanes {
        OpenLanes([Lane::Replay, Lane::Retry, Lane::Fresh].map(|lane| self.is_open(lane)))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast stops at the ends of u64, and takes NaN for 0"
)]
fn times(time: Micros, ratio: f64) -> Micros {
    Micros((time.0 as f64 * ratio) as u64)
}
