//! One breaker: of a worker, or of a pair of workers between which hand-offs go.
//!
//! | state | new work | leaves it |
//! |---|---|---|
//! | closed | yes | 5 failures in a row, or half of 20 in 10 s: open |
//! | open | no | after 1 s, doubled up to 30 s, up to a quarter less: half-open |
//! | half-open | one sequence | given it: probing |
//! | probing | no | a success: closed; a failure: open; neither in time: half-open |
//!
//! A worker that is lost (dead, ejected, broke the protocol) twice within the hold-down opens its
//! breaker as well, so one that comes and goes does not get work each time it comes. The wait is
//! doubled until it was closed for as long as the longest wait.
//!
//! A breaker never delays the detection of a dead worker, and it holds nothing that runs. How many
//! may be open at once is decided in `workers`; pairs have no such limit, as a prompt that cannot
//! be handed off stays where it is.

use super::{BrainConfig, random::Random, status::BreakerState};
use crate::units::Micros;

/// Seconds of outcomes that count.
const WINDOW_S: usize = 10;

/// A second loss within this time opens the breaker.
const HOLD_DOWN: Micros = Micros::from_millis(30_000);

/// How long a probe may take; then another one is sent.
const PROBE: Micros = Micros::from_millis(5_000);

/// What became of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done.
    Succeeded,
    /// It failed, and not through the fault of the work or of somebody else.
    Failed,
    /// The worker is lost.
    Lost,
    /// It is given to a half-open breaker's worker or pair.
    Placed,
    /// The breaker's timer is due.
    Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Micros },
    HalfOpen,
    Probing { until: Micros },
}

#[derive(Clone, Debug)]
pub(super) struct Breaker {
    state: State,
    /// Failures in a row.
    row: u32,
    /// Outcomes and failures of the last seconds, the latest first.
    window: [(u32, u32); WINDOW_S],
    /// The latest second in the window.
    second: u64,
    /// Openings without a long quiet time between them.
    level: u32,
    /// Last change to closed.
    closed_at: Micros,
    last_loss: Option<Micros>,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Closed,
            row: 0,
            window: [(0, 0); WINDOW_S],
            second: 0,
            level: 0,
            closed_at: Micros(0),
            last_loss: None,
        }
    }

    /// Takes an outcome in. True: it opened with this one.
    pub(super) fn hear(
        &mut self,
        outcome: Outcome,
        now: Micros,
        config: &BrainConfig,
        random: &mut Random,
    ) -> bool {
        let opens = match (outcome, self.state) {
            (Outcome::Succeeded, State::Closed) => {
                self.count(now, false);
                false
            }
            (Outcome::Succeeded, State::HalfOpen | State::Probing { .. }) => {
                self.state = State::Closed;
                self.closed_at = now;
                (self.row, self.window) = (0, [(0, 0); WINDOW_S]);
                false
            }
            (Outcome::Failed, State::Closed) => {
                self.count(now, true);
                self.fails_too_often(config)
            }
            (Outcome::Failed, State::HalfOpen | State::Probing { .. }) => true,
            (Outcome::Lost, state) => {
                let before = self.last_loss.replace(now);
                let is_again = before.is_some_and(|before| now.since(before) < HOLD_DOWN);
                is_again && !matches!(state, State::Open { .. })
            }
            (Outcome::Placed, State::HalfOpen) => {
                let until = now.plus(PROBE);
                self.state = State::Probing { until };
                false
            }
            (Outcome::Due, State::Open { until } | State::Probing { until }) if until <= now => {
                self.state = State::HalfOpen;
                false
            }
            (Outcome::Succeeded | Outcome::Failed, State::Open { .. })
            | (Outcome::Placed | Outcome::Due, _) => false,
        };
        if opens {
            self.open(now, config, random);
        }
        opens
    }

    fn open(&mut self, now: Micros, config: &BrainConfig, random: &mut Random) {
        /// Doublings of the first wait; the longest is reached before.
        const DOUBLINGS_MAX: u32 = 16;
        let is_quiet =
            self.state == State::Closed && now.since(self.closed_at) > config.breaker_open_max;
        self.level = if is_quiet { 0 } else { self.level };
        let wait = Micros(config.breaker_open_min.0.saturating_mul(1 << self.level))
            .min(config.breaker_open_max);
        self.level = (self.level + 1).min(DOUBLINGS_MAX);
        let shortest = Micros(wait.0 - wait.0 / 4);
        let until = now.plus(random.between(shortest, wait));
        self.state = State::Open { until };
        (self.row, self.window) = (0, [(0, 0); WINDOW_S]);
    }

    fn count(&mut self, now: Micros, is_failure: bool) {
        self.row = if is_failure {
            self.row.saturating_add(1)
        } else {
            0
        };
        self.forget_before(now);
        let (all, failed) = &mut self.window[0];
        *all = all.saturating_add(1);
        *failed = failed.saturating_add(u32::from(is_failure));
    }

    /// Moves the window up to `now`.
    fn forget_before(&mut self, now: Micros) {
        let second = now.0 / 1_000_000;
        let passed = second.saturating_sub(self.second);
        let passed = usize::try_from(passed).map_or(WINDOW_S, |passed| passed.min(WINDOW_S));
        self.window.rotate_right(passed);
        self.window[..passed].fill((0, 0));
        self.second = self.second.max(second);
    }

    fn fails_too_often(&self, config: &BrainConfig) -> bool {
        let sum = |(all, failed): (u64, u64), &(a, f): &(u32, u32)| {
            (all + u64::from(a), failed + u64::from(f))
        };
        let (all, failed) = self.window.iter().fold((0, 0), sum);
        self.row >= config.breaker_row_max
            || (all >= u64::from(config.breaker_outcomes_min)
                && failed * 100 >= all * u64::from(config.breaker_percent))
    }

    /// When its timer is due.
    pub(super) const fn due(&self) -> Option<Micros> {
        match self.state {
            State::Open { until } | State::Probing { until } => Some(until),
            State::Closed | State::HalfOpen => None,
        }
    }

    /// Takes no new work.
    pub(super) const fn is_shut(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Probing { .. })
    }

    /// Takes one sequence.
    pub(super) const fn is_half_open(&self) -> bool {
        matches!(self.state, State::HalfOpen)
    }

    pub(super) const fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen | State::Probing { .. } => BreakerState::HalfOpen,
        }
    }

    /// It remembers nothing that could still matter.
    pub(super) fn is_quiet(&mut self, now: Micros, config: &BrainConfig) -> bool {
        self.forget_before(now);
        let is_lost = self.last_loss.is_some_and(|at| now.since(at) < HOLD_DOWN);
        let is_doubling = self.level > 0 && now.since(self.closed_at) <= config.breaker_open_max;
        let has_failures = self.window.iter().any(|&(_, failed)| failed > 0);
        self.state == State::Closed && !is_lost && !is_doubling && !has_failures
    }
}

#[cfg(test)]
mod tests;
