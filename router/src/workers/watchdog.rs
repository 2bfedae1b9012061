//! Whether a worker that reports also gets on: its step ends, what it was told is answered.
//!
//! Counted in ticks of the report interval, as the lease is, and only while the worker is heard: a
//! front thread that was held up or a frozen process is no step that hangs. Owned by the session.

use crate::{wire::worker::Report, workers::lease::SUSPECT_TICKS};

/// A step may take this many times what its worker expected.
const EXPECTED_TIMES: u64 = 5;

/// What a tick says of a worker's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Nothing new.
    Same,
    /// It does not get on: no new work, what it has goes on elsewhere. Said once.
    Stuck,
    /// Its step has run for a whole lease more: the session is over.
    Over,
}

/// Why a worker is taken to be stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Its step does not end.
    Step,
    /// It says that it has nothing to do, and answers no Open and no Close.
    Silence,
}

/// The steps of one session.
#[derive(Debug)]
pub(super) struct Watchdog {
    tick_ms: u32,
    floor_ms: u32,
    lease_ms: u32,
    /// Steps made, as last reported.
    step: u64,
    /// What the step under way was expected to take; 0: none is under way, or it steps for nobody.
    expected_us: u32,
    /// It says that it has no work.
    is_idle: bool,
    /// Ticks since it got on.
    ticks: u32,
    cause: Option<Cause>,
    /// An earlier session of this process ended in this step: this one is not ended for it again.
    is_known: bool,
}

impl Watchdog {
    /// Ticked every `tick_ms`; a step may take `floor_ms`. `stuck_at`: the step in which the same
    /// process lost its last session.
    pub(super) fn new(tick_ms: u32, floor_ms: u32, lease_ms: u32, stuck_at: Option<u64>) -> Self {
        Self {
            tick_ms: tick_ms.max(1),
            floor_ms,
            lease_ms,
            step: stuck_at.unwrap_or_default(),
            expected_us: 0,
            is_idle: true,
            ticks: 0,
            cause: stuck_at.map(|_| Cause::Step),
            is_known: stuck_at.is_some(),
        }
    }

    /// A report came. Columns leave a worker through its step loop alone, so they show that it
    /// lives.
    pub(super) fn heard(&mut self, report: &Report) {
        let is_alive = report.step != self.step || has_columns(report);
        let has_work = report.running > 0 || report.prefill_tokens_queued > 0;
        let has_ended = self.cause == Some(Cause::Step) && report.next_step_us == 0;
        if is_alive || has_ended {
            self.ticks = 0;
            self.cause = None;
            self.is_known = false;
        }
        self.step = report.step;
        self.expected_us = if has_work { report.next_step_us } else { 0 };
        self.is_idle = !has_work;
    }

    /// It was not heard for so long that time says nothing of its steps.
    pub(super) fn pause(&mut self) {
        self.ticks = 0;
    }

    /// An interval passed in which it was heard. `is_asked`: an Open or a Close has no answer.
    pub(super) fn tick(&mut self, is_asked: bool) -> Pace {
        let cause = if self.expected_us > 0 {
            Cause::Step
        } else if self.is_idle && is_asked {
            Cause::Silence
        } else {
            self.ticks = 0;
            return Pace::Same;
        };
        self.ticks = self.ticks.saturating_add(1);
        let limit = self.limit();
        if self.cause.is_none() && self.ticks >= limit {
            self.cause = Some(cause);
            return Pace::Stuck;
        }
        // One that hung while idle keeps its session: its late answers tell that it is back.
        let over = limit.saturating_add(self.lease_ms.div_ceil(self.tick_ms));
        if cause == Cause::Step && self.ticks >= over && !self.is_known {
            return Pace::Over;
        }
        Pace::Same
    }

    /// Whether it has been stuck since the last `Pace::Stuck`.
    pub(super) const fn is_stuck(&self) -> bool {
        self.cause.is_some()
    }

    /// Steps made, as last reported.
    pub(super) const fn step(&self) -> u64 {
        self.step
    }

    /// What to tell people.
    pub(super) fn describe(&self) -> String {
        let ms = u64::from(self.ticks) * u64::from(self.tick_ms);
        if self.cause == Some(Cause::Silence) {
            return format!("it says that it is idle, but has answered nothing for {ms} ms");
        }
        let expected = f64::from(self.expected_us) / 1e3;
        // The one under way is not counted yet.
        let step = self.step.saturating_add(1);
        format!("step {step} has run for {ms} ms, {expected:.1} ms were expected")
    }

    /// Ticks that a step may take. The first may come at once, so this may be up to a tick early;
    /// from the start of the step to the verdict it is the whole time at most.
    fn limit(&self) -> u32 {
        let expected_ms = (u64::from(self.expected_us) * EXPECTED_TIMES).div_ceil(1_000);
        let ms = expected_ms.max(u64::from(self.floor_ms));
        let ticks = u32::try_from(ms.div_ceil(u64::from(self.tick_ms))).unwrap_or(u32::MAX);
        ticks.max(SUSPECT_TICKS)
    }
}

/// Whether a report says more than how its worker is.
fn has_columns(report: &Report) -> bool {
    !(report.opened_slots.is_empty()
        && report.arrived_slots.is_empty()
        && report.token_slots.is_empty()
        && report.closed_slots.is_empty()
        && report.prompt_logprobs.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dog() -> Watchdog {
        Watchdog::new(200, 1_000, 3_000, None)
    }

    fn stepping(step: u64, next_step_us: u32) -> Report {
        Report {
            step,
            next_step_us,
            running: 1,
            ..Report::default()
        }
    }

    /// Ticks with a heartbeat before each, until something is said.
    fn ticks_until_said(dog: &mut Watchdog, report: &Report, is_asked: bool) -> (u32, Pace) {
        for tick in 1..200 {
            dog.heard(report);
            match dog.tick(is_asked) {
                Pace::Same => {}
                pace => return (tick, pace),
            }
        }
        (200, Pace::Same)
    }

    #[test]
    fn a_step_that_hangs_is_said_within_a_second_then_its_session_is_over() {
        let mut dog = dog();
        let report = stepping(7, 10_000);
        assert_eq!(ticks_until_said(&mut dog, &report, false), (5, Pace::Stuck));
        assert!(dog.is_stuck());
        let told = "step 8 has run for 1000 ms, 10.0 ms were expected";
        assert_eq!(dog.describe(), told);
        assert_eq!(ticks_until_said(&mut dog, &report, false), (15, Pace::Over));
    }

    #[test]
    fn a_long_step_has_five_times_what_was_announced() {
        let mut dog = dog();
        let report = stepping(7, 1_000_000);
        let said = ticks_until_said(&mut dog, &report, false);
        assert_eq!(said, (25, Pace::Stuck));
    }

    #[test]
    fn steps_that_end_are_never_stuck() {
        let mut dog = dog();
        for step in 0..100 {
            for _ in 0..4 {
                dog.heard(&stepping(step, 10_000));
                assert_eq!(dog.tick(true), Pace::Same);
            }
        }
        let idle = ticks_until_said(&mut dog, &Report::default(), false);
        assert_eq!(idle, (200, Pace::Same), "nothing to do, nothing asked");
    }

    #[test]
    fn it_is_back_when_its_step_moves() {
        let mut dog = dog();
        ticks_until_said(&mut dog, &stepping(7, 10_000), false);
        dog.heard(&stepping(7, 10_000));
        assert!(dog.is_stuck());
        dog.heard(&stepping(8, 10_000));
        assert!(!dog.is_stuck());
        let again = ticks_until_said(&mut dog, &stepping(8, 10_000), false);
        assert_eq!(again, (5, Pace::Stuck), "and said anew");
    }

    #[test]
    fn an_idle_loop_that_answers_nothing_is_stuck_until_it_answers() {
        let mut dog = dog();
        let idle = Report::default();
        assert_eq!(ticks_until_said(&mut dog, &idle, true), (5, Pace::Stuck));
        let after = ticks_until_said(&mut dog, &idle, true);
        assert_eq!(after, (200, Pace::Same), "it keeps its session");
        assert!(dog.is_stuck());
        dog.heard(&Report {
            closed_slots: vec![1],
            ..Report::default()
        });
        assert!(!dog.is_stuck());
    }

    #[test]
    fn one_that_waits_for_its_peer_is_not_stuck() {
        let mut dog = dog();
        // All its seats are frozen: it steps for nobody, but knows of them.
        let report = stepping(7, 0);
        assert_eq!(ticks_until_said(&mut dog, &report, true).1, Pace::Same);
    }

    #[test]
    fn silence_is_not_counted() {
        let mut dog = dog();
        dog.heard(&stepping(7, 10_000));
        for _ in 0..4 {
            assert_eq!(dog.tick(false), Pace::Same);
        }
        dog.pause();
        let said = ticks_until_said(&mut dog, &stepping(7, 10_000), false);
        assert_eq!(said, (5, Pace::Stuck));
    }

    #[test]
    fn a_process_that_comes_back_in_the_same_step_is_still_stuck() {
        let mut dog = Watchdog::new(200, 1_000, 3_000, Some(7));
        assert!(dog.is_stuck());
        let said = ticks_until_said(&mut dog, &stepping(7, 10_000), false);
        assert_eq!(said, (200, Pace::Same), "neither said nor ended again");
        assert!(dog.is_stuck());
        dog.heard(&stepping(8, 10_000));
        assert!(!dog.is_stuck());
    }
}
