//! Another rate on the trace's own clock.
//!
//! Dividing the arrival times would speed drift up as well, and a policy that follows the load
//! would look worse than it is. So every request is repeated instead (policy study, section 1).

use std::sync::Arc;

use dopd_core::units::Micros;

use super::random::Random;
use crate::scenario::{Trace, TraceRequest};

/// Largest factor.
pub const FACTOR_MAX: f64 = 10_000.0;
/// A copy comes so much earlier or later at most.
pub const SHIFT_MAX: Micros = Micros(2_000_000);
/// A copy has the lengths of a request so many places away at most.
pub const NEIGHBOURS: u64 = 50;

/// The trace at `factor` times its rate: every request that many times (the rest of a fraction by
/// chance), moved by up to [`SHIFT_MAX`], with the lengths of one of its [`NEIGHBOURS`]. Copies
/// share prefixes only with copies of the same number. A factor of 1 changes nothing; one below 0
/// counts as 0, one above [`FACTOR_MAX`] as that.
pub fn scale(trace: &Trace, factor: f64, seed: u64) -> Trace {
    let factor = factor.clamp(0.0, FACTOR_MAX);
    let mut made = trace.clone();
    if (factor - 1.0).abs() < f64::EPSILON {
        return made;
    }
    let mut random = Random::new(seed);
    made.name = format!("{} x{}", trace.name, libm::round(factor * 1e4) / 1e4);
    made.requests.clear();
    let last = trace.requests.len().saturating_sub(1) as u64;
    for (at, request) in (0_u64..).zip(&trace.requests) {
        let low = at.saturating_sub(NEIGHBOURS);
        let span = (at + NEIGHBOURS).min(last) - low + 1;
        for copy in 0..copies(factor, &mut random) {
            let there = usize::try_from(low + random.below(span)).unwrap_or(0);
            let neighbour = trace.requests.get(there).unwrap_or(request);
            made.requests.push(TraceRequest {
                arrival: moved(request.arrival, &mut random),
                blocks: apart(&neighbour.blocks, copy),
                ..neighbour.clone()
            });
        }
    }
    made.requests.sort_by_key(|request| request.arrival);
    made
}

/// What comes within the first `seconds`.
pub fn first_seconds(mut trace: Trace, seconds: f64) -> Trace {
    let end = super::read::micros(seconds).unwrap_or(Micros(u64::MAX));
    trace.requests.retain(|request| request.arrival < end);
    trace
}

/// How often this request comes: the factor, up or down by chance.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the factor is between 0 and FACTOR_MAX"
)]
fn copies(factor: f64, random: &mut Random) -> u64 {
    let whole = libm::floor(factor);
    whole as u64 + u64::from(random.unit() < factor - whole)
}

/// Up to [`SHIFT_MAX`] earlier or later; what would come before the start comes as much after it.
fn moved(arrival: Micros, random: &mut Random) -> Micros {
    let forth = Micros(random.below(2 * SHIFT_MAX.0 + 1));
    let later = arrival.plus(forth);
    Micros(later.0.abs_diff(SHIFT_MAX.0))
}

/// Blocks of the same text at another conversation.
fn apart(blocks: &Arc<[u64]>, copy: u64) -> Arc<[u64]> {
    if copy == 0 || blocks.is_empty() {
        return Arc::clone(blocks);
    }
    let salt = Random::new(copy).bits();
    blocks.iter().map(|block| block ^ salt).collect()
}
