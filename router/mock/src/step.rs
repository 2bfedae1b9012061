//! How long a step takes: by the cost model, fixed, or no time at all.

use std::time::Duration;

use crate::{model::PAGE_BYTES, seats::Batch};

/// Assumed rate of a data link: 1 GB/s, until it is measured.
const LINK_BYTES_PER_US: u64 = 1_000;

/// Step times of a mock worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// Steps follow each other as fast as the machine computes them.
    Instant,
    /// Every step takes this long.
    Fixed(Duration),
}

impl Pace {
    /// By the name of a calibration.
    pub fn named(name: &str) -> Result<Self, String> {
        match name {
            "instant" => Ok(Self::Instant),
            _ => Err(format!("--mock-timings {name}: not known")),
        }
    }

    /// Duration of a step.
    pub fn step_time(&self, _batch: &Batch) -> Duration {
        match self {
            Self::Instant => Duration::ZERO,
            Self::Fixed(time) => *time,
        }
    }

    /// Step times for the hello, as the JSON of `core/cost`; empty: none.
    pub fn timings_json(&self) -> String {
        String::new()
    }

    /// Pages that a link writes within one step of `step_us`: a source with as few left may freeze.
    pub fn pages_per_step(step_us: u32) -> u32 {
        let pages = u64::from(step_us) * LINK_BYTES_PER_US / u64::from(PAGE_BYTES);
        u32::try_from(pages).unwrap_or(u32::MAX)
    }
}
