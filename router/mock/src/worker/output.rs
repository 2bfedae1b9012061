//! What a worker does to the world: frames, dials, aborts, reports.

use dopd_core::units::Micros;
use tokio::time::Instant;

use super::Worker;
use crate::{
    backoff, link, model,
    seats::{Effect, Event},
};

impl Worker {
    /// Carries out what the table asked for.
    pub(super) fn perform(&mut self) {
        let now = self.now();
        while self.seats.has_effects() {
            for effect in self.seats.take_effects() {
                self.perform_one(now, effect);
            }
        }
    }

    fn perform_one(&mut self, now: Micros, effect: Effect) {
        match effect {
            Effect::Dial {
                link,
                peer,
                attempt,
            } => {
                let delay = backoff::wait(attempt, model::mix(self.identity.incarnation ^ link));
                let identity = self.identity.clone();
                let inbox = self.inbox_sender.clone();
                self.tasks
                    .spawn(link::dial(link, peer, delay, identity, inbox));
            }
            Effect::Say(id, message) => {
                let full = match self.links.get(&id) {
                    Some(link) => link.try_send(message).is_err(),
                    None => false,
                };
                if full {
                    tracing::warn!(
                        ?id,
                        "data link: closed, or {} frames wait",
                        link::FRAMES_MAX
                    );
                    self.links.remove(&id);
                    self.seats.handle(now, Event::LinkDown(id));
                }
            }
            Effect::Abort(id, reason) => {
                tracing::warn!(?id, ?reason, "data link: aborted");
                self.links.remove(&id);
            }
            Effect::Break(why) => {
                tracing::error!(
                    worker = self.config.name,
                    why,
                    "protocol error of the router"
                );
                self.session = None;
                self.seats.handle(now, Event::SessionLost);
            }
        }
    }

    /// Sends a report if something changed or the heartbeat is due.
    pub(super) fn report(&mut self) {
        let Some(session) = &self.session else {
            return;
        };
        if !self.seats.is_dirty() && self.reported.elapsed() < session.interval {
            return;
        }
        let step_us = self
            .step
            .as_ref()
            .map_or(0, |step| step.batch.expected_us());
        if let Some(mut report) = self.seats.take_report(step_us) {
            let silent_ms = self.heard.elapsed().as_millis();
            report.heard_ms = u32::try_from(silent_ms).unwrap_or(u32::MAX);
            session.send(report);
            self.reported = Instant::now();
        }
    }
}
