//! Calibrations that come with dopd.
//!
//! Source of `h100-*`: the fit of the simulation study that chose dopd's policy. `w`, `b`, `c1`,
//! `c2` from H100 kernel timings and the medians of Vidur's MLP profiles; `f` above the kernel time
//! and `t0`, `cb` by hand, for the overhead of an engine. Checked against published prefill and
//! decode times on H200: expect 25 % either way. **Not measured with dopd's own engine.** The
//! penalty of mixed steps is that study's start value, 20 %, until a worker measures its own.

use super::Timings;

const MIXED_PENALTY_RATIO: f64 = 0.2;

impl Timings {
    /// Names that [`Timings::builtin`] knows.
    pub const BUILTIN_NAMES: [&'static str; 3] = ["instant", "h100-8b", "h100-70b"];

    /// A built-in calibration by its name.
    pub fn builtin(name: &str) -> Option<Self> {
        match name {
            "instant" => Some(Self::instant()),
            "h100-8b" => Some(Self::h100_8b()),
            "h100-70b" => Some(Self::h100_70b()),
            _ => None,
        }
    }

    /// Everything takes no time.
    pub fn instant() -> Self {
        Self {
            name: "instant".to_owned(),
            step_prefill_us: 0.0,
            step_decode_us: 0.0,
            weights_us: 0.0,
            memory_us_per_token: 0.0,
            compute_us_per_token: 0.0,
            attention_us_per_pair: 0.0,
            context_us_per_token: 0.0,
            batch_us_per_seq: 0.0,
            mixed_penalty_ratio: 0.0,
            handoff_bytes_per_s: 0.0,
            handoff_fixed_us: 0.0,
        }
    }

    /// Llama-3.1-8B, bf16, one H100; hand-off at 100 GB/s (131,072 bytes of KV per token).
    pub fn h100_8b() -> Self {
        Self {
            name: "h100-8b".to_owned(),
            step_prefill_us: 4_000.0,
            step_decode_us: 1_600.0,
            weights_us: 5_200.0,
            memory_us_per_token: 6.0,
            compute_us_per_token: 22.5,
            attention_us_per_pair: 0.83e-3,
            context_us_per_token: 4.4e-2,
            batch_us_per_seq: 20.0,
            mixed_penalty_ratio: MIXED_PENALTY_RATIO,
            handoff_bytes_per_s: 100e9,
            handoff_fixed_us: 2_000.0,
        }
    }

    /// Llama-70B with grouped heads, fp16, four H100 as one; hand-off at 200 GB/s (327,680 bytes of
    /// KV per token).
    pub fn h100_70b() -> Self {
        Self {
            name: "h100-70b".to_owned(),
            step_prefill_us: 8_000.0,
            step_decode_us: 3_000.0,
            weights_us: 14_300.0,
            memory_us_per_token: 15.0,
            compute_us_per_token: 75.0,
            attention_us_per_pair: 1.0e-3,
            context_us_per_token: 2.7e-2,
            batch_us_per_seq: 30.0,
            mixed_penalty_ratio: MIXED_PENALTY_RATIO,
            handoff_bytes_per_s: 200e9,
            handoff_fixed_us: 2_000.0,
        }
    }
}
