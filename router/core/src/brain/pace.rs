//! How fast the fleet is, as seen of late: how long an answer takes once it is placed, and how fast
//! the queue moves. From observation alone, so that it holds for any worker and any load.
//!
//! Two decisions rest on it. A request that would wait until its deadline is refused when it comes,
//! so that its client can go elsewhere at once. One that has waited so long that its answer cannot
//! be complete in time is not begun: at three times the load everything that is placed would have
//! most of its time behind it and die half-way, and all work would be for the dead. Both need more
//! than a few observations, and neither touches a request that could not be answered in its time by
//! an idle fleet either: there the prediction may be wrong, and nobody waits for its place.

use crate::units::{Micros, Tokens};

/// Observations before anything is predicted.
const OBSERVATIONS_MIN: u32 = 16;

/// Observations that an average goes back over: places come in bursts, so it takes more than one of
/// these to see how fast they come.
const OBSERVATIONS: u32 = 64;

/// An answer takes up to so much longer than predicted.
const MARGIN: f64 = 1.25;

/// An exponential average.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    value: f64,
    count: u32,
}

impl Average {
    fn add(&mut self, value: f64) {
        self.count = (self.count + 1).min(OBSERVATIONS);
        self.value += (value - self.value) / f64::from(self.count);
    }

    fn get(self) -> Option<f64> {
        (self.count >= OBSERVATIONS_MIN).then_some(self.value)
    }
}

/// What is known of one run of a sequence when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) placed: Micros,
    /// First token since then.
    pub(super) first: Micros,
    pub(super) ended: Micros,
    /// Tokens that were computed before the first one.
    pub(super) prefill: Tokens,
    /// Tokens made.
    pub(super) made: Tokens,
    pub(super) is_finished: bool,
}

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// From the place to the first token.
    first_us: Average,
    prefill_tokens: Average,
    token_us: Average,
    answer_tokens: Average,
    /// Between places, while somebody waits for one.
    place_us: Average,
    /// Last place, or since when somebody waits.
    waiting_since: Option<Micros>,
}

impl Pace {
    /// A sequence ended that had made a token where it was.
    pub(super) fn ended(&mut self, run: Run) {
        self.first_us.add(run.first.since(run.placed).0 as f64);
        self.prefill_tokens.add(f64::from(run.prefill.0));
        let made = f64::from(run.made.0);
        if made > 1.0 {
            let us = run.ended.since(run.first).0 as f64;
            self.token_us.add(us / (made - 1.0));
        }
        // One that was cut off would have been longer.
        if run.is_finished || made > self.answer_tokens.value {
            self.answer_tokens.add(made);
        }
    }

    /// So many were placed at an event, and somebody still waits or not.
    pub(super) fn placed(&mut self, now: Micros, count: u32, is_anybody_waiting: bool) {
        if let Some(since) = self.waiting_since
            && count > 0
        {
            let each = now.since(since).0 as f64 / f64::from(count);
            (0..count).for_each(|_| self.place_us.add(each));
        }
        self.waiting_since = match self.waiting_since {
            _ if !is_anybody_waiting => None,
            Some(since) if count == 0 => Some(since),
            _ => Some(now),
        };
    }

    /// How long so many wait for their place, if that is known.
    pub(super) fn wait(&self, waiting: usize) -> Option<Micros> {
        let place_us = self.place_us.get()?;
        Some(micros(place_us * waiting as f64))
    }

    /// How long an answer takes from its place on; no more than is sure to be needed for a long
    /// prompt.
    pub(super) fn service(&self, prefill: Tokens, answer_max: Tokens) -> Option<Micros> {
        let (first_us, prefill_tokens) = (self.first_us.get()?, self.prefill_tokens.get()?);
        let part = f64::from(prefill.0) / libm::fmax(prefill_tokens, 1.0);
        let tokens = libm::fmin(f64::from(answer_max.0), self.answer_tokens.get()?);
        let us = first_us * libm::fmin(part, 1.0) + self.token_us.get()? * tokens;
        Some(micros(us * MARGIN))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast stops at the ends of u64"
)]
fn micros(us: f64) -> Micros {
    Micros(us as u64)
}
