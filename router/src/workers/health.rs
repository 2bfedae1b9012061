//! What the session of a worker concludes from what it hears, and from what it does not.

use dopd_core::event::Suspicion;

use crate::{
    config::records::WorkersConfig,
    wire::worker::Report,
    workers::{
        lease::{Lease, Silence},
        watchdog::{Pace, Watchdog},
    },
};

/// What is to be done about a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Same,
    /// Eject it, for this; the text is for people.
    Eject(Suspicion, String),
    /// End its session, for this.
    End(String),
    /// The same, and remember that its process hangs in this step.
    EndStuck(String, u64),
}

/// The health of one worker.
#[derive(Debug)]
pub(super) struct Health {
    lease: Lease,
    lease_ms: u32,
    watchdog: Watchdog,
}

impl Health {
    /// Of a worker that was just welcomed. `stuck_at`: the step in which the same process hung when
    /// its last session was ended.
    pub(super) fn new(workers: &WorkersConfig, stuck_at: Option<u64>) -> Self {
        let (lease_ms, tick_ms) = (workers.lease_ms, workers.report_interval_ms);
        let floor_ms = workers.step_timeout_min_ms;
        Self {
            lease: Lease::new(lease_ms, tick_ms),
            lease_ms,
            watchdog: Watchdog::new(tick_ms, floor_ms, lease_ms, stuck_at),
        }
    }

    /// A message came.
    pub(super) fn heard(&mut self) {
        self.lease.heard();
    }

    /// The message was a report of this session. Returns whether the worker is stuck.
    pub(super) fn reported(&mut self, report: &Report) -> bool {
        self.watchdog.heard(report);
        self.watchdog.is_stuck()
    }

    /// A report interval passed. `is_asked`: an Open or a Close has no answer.
    pub(super) fn tick(&mut self, is_asked: bool) -> Verdict {
        match self.lease.tick() {
            Silence::Short => {}
            Silence::Suspect => {
                self.watchdog.pause();
                let why = "it has missed four reports".to_owned();
                return Verdict::Eject(Suspicion::Silent, why);
            }
            Silence::Over => return Verdict::End(format!("silent for {} ms", self.lease_ms)),
        }
        if !self.lease.is_fresh() {
            return Verdict::Same;
        }
        match self.watchdog.tick(is_asked) {
            Pace::Same => Verdict::Same,
            Pace::Stuck => Verdict::Eject(Suspicion::Stuck, self.watchdog.describe()),
            Pace::Over => Verdict::EndStuck(self.watchdog.describe(), self.watchdog.step()),
        }
    }
}
