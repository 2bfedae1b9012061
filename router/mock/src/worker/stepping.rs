//! Steps: when one begins, how long it takes, when it is over.

use std::time::Duration;

use tokio::time::Instant;

use super::{Step, Worker, micros};
use crate::{
    faults::{self, FaultKind},
    seats::Batch,
};

/// A step may be counted from as long ago as this.
const CATCH_UP: Duration = Duration::from_millis(5);

impl Worker {
    /// Starts the next step, if some seat has something to compute.
    pub(super) fn begin_step(&mut self) {
        let last_end = self.last_end.take();
        let pages_left_max = self.config.pace.pages_per_step();
        let time = self.now();
        let Some(mut batch) = self.seats.begin_step(time, pages_left_max) else {
            return;
        };
        let now = Instant::now();
        // Timers are coarse: steps that follow each other are counted from end to end, so that they
        // do not stretch.
        let begun = last_end.map_or(now, |end| end.max(now - CATCH_UP));
        let step_time = self.config.pace.step_time(&batch);
        let ends = begun + self.strike(&mut batch, step_time);
        self.step = Some(Step { batch, begun, ends });
    }

    /// What tests want to go wrong in this step; returns the time that it takes.
    fn strike(&mut self, batch: &mut Batch, step_time: Duration) -> Duration {
        if self.config.faults.is_empty() {
            return step_time;
        }
        let struck = self.seats.strike(batch, &self.config.faults);
        if struck.contains(&FaultKind::Exit) {
            std::process::exit(faults::EXIT_CODE);
        }
        if struck.contains(&FaultKind::Hang) {
            return faults::HANG;
        }
        if struck.contains(&FaultKind::Slow) {
            let step = if step_time.is_zero() {
                faults::SLOW_STEP
            } else {
                step_time
            };
            return step * faults::SLOW_FACTOR;
        }
        step_time
    }

    pub(super) fn finish_step(&mut self) {
        let Some(step) = self.step.take() else {
            return;
        };
        let now = self.now();
        let step_us = micros(step.begun.elapsed());
        self.last_end = Some(step.ends);
        self.seats.finish_step(now, &step.batch, step_us);
    }
}
