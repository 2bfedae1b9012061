//! The step policy on its way: as a Welcome tells it to workers, and as a worker written in Rust
//! understands it.

use dopd_core::{
    step::{StepMode, StepPolicy},
    units::{Micros, Tokens},
};

use crate::wire::worker as wire;

/// As a Welcome tells it. Ratios lose what `f32` does not hold.
#[expect(clippy::cast_possible_truncation, reason = "ratios near 1")]
pub fn to_wire(policy: &StepPolicy) -> wire::StepPolicy {
    let us = |time: Micros| u32::try_from(time.0).unwrap_or(u32::MAX);
    let mode = match policy.mode {
        StepMode::Fill => wire::StepMode::Fill,
        StepMode::Chunk => wire::StepMode::Chunk,
        StepMode::ChunkInTime => wire::StepMode::ChunkInTime,
        StepMode::PauseOrMix => wire::StepMode::PauseOrMix,
    };
    wire::StepPolicy {
        mode: mode.into(),
        chunk_tokens: policy.chunk_tokens.0,
        tpot_us: us(policy.tpot),
        mixed_step_ratio: policy.mixed_step_ratio as f32,
        pace_ratio: policy.pace_ratio as f32,
        pause_max_us: us(policy.pause_max),
        pause_min_us: us(policy.pause_min),
        slack_quantile: policy.slack_quantile as f32,
        mixed_penalty_start: policy.mixed_penalty_start as f32,
        probe_every: policy.probe_every,
        idle_slice_max_us: us(policy.idle_slice_max),
    }
}

/// As a worker understands it; a mode that it does not know is `fill`, which needs no other field.
pub fn from_wire(told: &wire::StepPolicy) -> StepPolicy {
    let us = |time: u32| Micros(u64::from(time));
    StepPolicy {
        mode: match told.mode() {
            wire::StepMode::Unspecified | wire::StepMode::Fill => StepMode::Fill,
            wire::StepMode::Chunk => StepMode::Chunk,
            wire::StepMode::ChunkInTime => StepMode::ChunkInTime,
            wire::StepMode::PauseOrMix => StepMode::PauseOrMix,
        },
        chunk_tokens: Tokens(told.chunk_tokens),
        tpot: us(told.tpot_us),
        mixed_step_ratio: f64::from(told.mixed_step_ratio),
        pace_ratio: f64::from(told.pace_ratio),
        pause_max: us(told.pause_max_us),
        pause_min: us(told.pause_min_us),
        slack_quantile: f64::from(told.slack_quantile),
        mixed_penalty_start: f64::from(told.mixed_penalty_start),
        probe_every: told.probe_every,
        idle_slice_max: us(told.idle_slice_max_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_understands_what_it_is_told() {
        let modes = [
            StepMode::Fill,
            StepMode::Chunk,
            StepMode::ChunkInTime,
            StepMode::PauseOrMix,
        ];
        for mode in modes {
            // Ratios that f32 holds exactly; every field differs from every other.
            let policy = StepPolicy {
                mode,
                chunk_tokens: Tokens(1_024),
                tpot: Micros(70_001),
                mixed_step_ratio: 0.875,
                pace_ratio: 0.9375,
                pause_max: Micros(90_002),
                pause_min: Micros(40_003),
                slack_quantile: 0.0625,
                mixed_penalty_start: 0.25,
                probe_every: 33,
                idle_slice_max: Micros(50_004),
            };
            assert_eq!(from_wire(&to_wire(&policy)), policy);
        }
        let vague = wire::StepPolicy {
            mode: 99,
            ..to_wire(&StepPolicy::default())
        };
        assert_eq!(from_wire(&vague).mode, StepMode::Fill);
    }

    /// The times that count are those of the setting, to the microsecond.
    #[test]
    fn rounding_on_the_way_moves_no_time() {
        let policy = StepPolicy::default();
        let heard = from_wire(&to_wire(&policy));
        for ms in [10, 20, 80, 200, 1_000] {
            let tpot = Micros::from_millis(ms);
            assert_eq!(heard.pace_us(tpot), policy.pace_us(tpot));
            assert_eq!(heard.tau_us(tpot), policy.tau_us(tpot));
        }
    }
}
