//! What the session of a worker concludes from what it hears, and from what it does not.

use dopd_core::event::Suspicion;

use crate::{
    config::records::WorkersConfig,
    wire::worker::Report,
    workers::{
        lease::{Lease, Silence},
        outgoing::HEARTBEAT,
        watchdog::{Pace, Watchdog},
    },
};

/// A worker that has not heard us for so long misses a heartbeat; the rest is for slow links.
const DEAF_MS: u128 = HEARTBEAT.as_millis() + 300;

/// Ticks in a row on which it says so. The second one keeps a front thread that was held up itself
/// from blaming its workers: they hear it again before.
const DEAF_TICKS: u32 = 2;

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
    /// Since when the worker has not heard us, as it last said.
    heard_ms: u32,
    /// Ticks on which that was too long.
    deaf: u32,
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
            heard_ms: 0,
            deaf: 0,
        }
    }

    /// A message came.
    pub(super) fn heard(&mut self) {
        self.lease.heard();
    }

    /// The message was a report of this session. Returns whether the worker is stuck, or deaf.
    pub(super) fn reported(&mut self, report: &Report) -> bool {
        self.watchdog.heard(report);
        self.heard_ms = report.heard_ms;
        if !self.is_unheard() {
            self.deaf = 0;
        }
        self.watchdog.is_stuck() || self.deaf >= DEAF_TICKS
    }

    fn is_unheard(&self) -> bool {
        u128::from(self.heard_ms) >= DEAF_MS
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
        if self.is_unheard() {
            self.deaf = self.deaf.saturating_add(1);
            if self.deaf == DEAF_TICKS {
                let why = format!("it has not heard us for {} ms", self.heard_ms);
                // The network's fault: what it holds is not to be blamed for it.
                return Verdict::Eject(Suspicion::Silent, why);
            }
        }
        match self.watchdog.tick(is_asked) {
            Pace::Same => Verdict::Same,
            Pace::Stuck => Verdict::Eject(Suspicion::Stuck, self.watchdog.describe()),
            Pace::Over => Verdict::EndStuck(self.watchdog.describe(), self.watchdog.step()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deaf_for(heard_ms: u32) -> Report {
        Report {
            heard_ms,
            ..Report::default()
        }
    }

    #[test]
    fn a_deaf_worker_is_ejected_once_and_back_when_it_hears() {
        let mut health = Health::new(&WorkersConfig::default(), None);
        let mut ejected = Vec::new();
        for tick in 0..10_u32 {
            health.heard();
            let is_stuck = health.reported(&deaf_for(tick * 200));
            assert_eq!(is_stuck, ejected.len() == 1, "in tick {tick}");
            if let Verdict::Eject(why, _) = health.tick(false) {
                ejected.push((tick, why));
            }
        }
        assert_eq!(ejected, [(5, Suspicion::Silent)]);
        assert!(!health.reported(&deaf_for(3)));
    }

    #[test]
    fn a_front_that_was_held_up_blames_nobody() {
        let mut health = Health::new(&WorkersConfig::default(), None);
        health.heard();
        assert!(!health.reported(&deaf_for(2_000)));
        assert_eq!(health.tick(false), Verdict::Same);
        health.heard();
        assert!(!health.reported(&deaf_for(150)));
        assert_eq!(health.tick(false), Verdict::Same);
    }
}
