//! What is computed again, how often, and when.
//!
//! A fault of a worker costs its sequences time, not their answers: each is computed again from its
//! prompt and the tokens that its client has. Four bounds keep that from doing harm.
//!
//! | bound | against | beyond it |
//! |---|---|---|
//! | `deaths_max` workers that died or got stuck under it | requests that kill | rejected |
//! | `replays_max` times, `replay_tokens_max` tokens | bad luck | rejected |
//! | `retries_percent` of what runs, at least `retries_min` | a fleet that fails at all | waits |
//! | `death_settle` after a death | a host that takes all its workers with it | waits |
//!
//! **Poison.** A worker that died counts for the requests whose current seat it held, once for all
//! choices, not for those that were on their way to it. The first always counts; another one only
//! if the sequence had made no token there, as whoever computes prompt and answer so far and goes
//! on is not what killed the one before. At `deaths_max` the request is rejected with all its
//! choices: `PoisonSuspect`, never a third. Who had made no token at the dead worker is a suspect:
//! it comes after the others and is computed where no other of them is (prompts are not computed
//! sooner for being computed together), so the next death is its own. A silent worker may be behind
//! a broken network, so it is blamed on nobody; if the same process is back after its stream broke,
//! the death is forgiven.
//!
//! **One sequence.** Its first replay is always allowed, however long it is: one death must cost no
//! answer. What is nobody's fault is free: a refusal, a worker that left as it was told to, a
//! preemption.
//!
//! **Preemption.** A sequence whose pages others needed goes on in front of all that have not
//! begun. After `PREEMPTIONS_MAX` times it is promised pages to its end, so that it does not
//! thrash; a worker that takes them nevertheless, before it made a token, has failed it. Every
//! other preemption is paid for by a token, its own or that of who took the page: they end.
//!
//! **The fleet.** The other two bounds delay and never reject, so no number of residents makes one
//! death dear: who has made a token since it was placed is replayed at once. Only those whose last
//! place gave them nothing share the budget, as it is they that multiply the work when everything
//! fails: in a total outage a fifth is sent again, not four times as much. A place in the budget is
//! free again with the sequence's next token, so a healthy fleet does not feel it.

use super::{
    Brain,
    admit::Refusal,
    queue::Lane,
    sequences::{Risk, Trial},
    table::{Fault, Loss},
    timers::Timer,
};
use crate::{
    action::Violation,
    event::{CloseReason, Suspicion},
    ids::RequestId,
    request::RejectReason,
    units::Micros,
};

/// Preemptions after which a sequence is promised pages for its longest answer, so that nobody
/// takes them again.
pub(super) const PREEMPTIONS_MAX: u32 = 2;

/// The group of deaths ends after so many times `death_settle`, even if more come.
const SETTLES_MAX: u64 = 2;

impl Loss {
    /// The work itself may be the cause.
    pub(super) const fn is_death(self) -> bool {
        matches!(self, Self::Died | Self::Ejected(Suspicion::Stuck))
    }
}

impl Fault {
    /// Something failed, so that it counts against the budget of the sequence.
    const fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Closed(CloseReason::Refused) | Self::Lost(Loss::Left)
        )
    }

    const fn is_death(self) -> bool {
        matches!(self, Self::Lost(loss) if loss.is_death())
    }
}

impl Brain {
    /// Computes a sequence again, within the bounds.
    pub(super) fn replay(&mut self, key: usize, fault: Fault) -> Option<Violation> {
        let sequence = self.sequences.get_mut(key)?;
        let has_progress = sequence.answer > sequence.placed_at;
        let is_free = fault == Fault::Closed(CloseReason::Preempted)
            && (has_progress || sequence.preemptions < PREEMPTIONS_MAX);
        let is_failure = fault.is_failure() && !is_free;
        if is_failure {
            sequence.replays += 1;
            sequence.replay_tokens += u64::from(sequence.to_prefill().0);
        }
        if fault == Fault::Closed(CloseReason::Preempted) {
            sequence.preemptions += 1;
        }
        let request = sequence.id.request;
        let deaths = if fault.is_death() {
            self.sequences
                .died_under(request, self.incidents, has_progress)
        } else {
            0
        };
        if deaths >= self.config.deaths_max {
            self.condemn(request);
            return None;
        }
        if let Some(why) = self.refuse_replay(key, fault, is_failure) {
            return self.end(key, Some(Refusal::of(why)));
        }
        if fault != Fault::Closed(CloseReason::Refused) {
            self.replays_total += 1;
            let is_retry = is_failure && !has_progress;
            let sequence = self.sequences.get_mut(key)?;
            self.replay_tokens_total += u64::from(sequence.to_prefill().0);
            sequence.queue_key.lane = if is_retry { Lane::Retry } else { Lane::Replay };
        }
        self.note_replay(key, fault);
        *self.replays_by.entry(fault.word()).or_default() += 1;
        self.close_seats(key);
        self.wait(key);
        None
    }

    /// Enough workers died under a request: no other is to meet any of its choices.
    fn condemn(&mut self, request: RequestId) {
        self.poison_total += 1;
        for key in self.sequences.of_request(request) {
            self.end(key, Some(Refusal::of(RejectReason::PoisonSuspect)));
        }
    }

    /// Why it is not computed again.
    fn refuse_replay(&self, key: usize, fault: Fault, is_failure: bool) -> Option<RejectReason> {
        let (config, sequence) = (&self.config, self.sequences.get(key)?);
        let is_over = sequence.replays > config.replays_max
            || (sequence.replays > 1 && sequence.replay_tokens > config.replay_tokens_max);
        if fault == Fault::Closed(CloseReason::Error) {
            Some(RejectReason::EngineError)
        } else if (is_over && is_failure) || sequence.answer >= sequence.max_tokens {
            // All tokens made and no finish: no worker has anything left to compute.
            Some(RejectReason::WorkerFailed)
        } else {
            None
        }
    }

    /// A sequence was placed; if not for the first time, it is in trial until its next token.
    pub(super) fn begin_trial(&mut self, key: usize, worker: usize) {
        let Some(sequence) = self.sequences.get(key) else {
            return;
        };
        let trial = Trial {
            worker,
            is_retry: sequence.queue_key.lane == Lane::Retry,
            risk: self.sequences.risk(sequence),
        };
        if sequence.queue_key.lane != Lane::Fresh {
            self.count_trial(trial, true);
            if let Some(sequence) = self.sequences.get_mut(key) {
                sequence.trial = Some(Box::new(trial));
            }
        }
    }

    /// It made a token, ended, or waits again.
    pub(super) fn trial_over(&mut self, key: usize) {
        let sequence = self.sequences.get_mut(key);
        if let Some(trial) = sequence.and_then(|sequence| sequence.trial.take()) {
            self.count_trial(*trial, false);
        }
    }

    fn count_trial(&mut self, trial: Trial, begins: bool) {
        if trial.is_retry {
            let after = self.retries_running + usize::from(begins);
            self.retries_running = after.saturating_sub(usize::from(!begins));
        }
        let change = |count: u32| (count + u32::from(begins)).saturating_sub(u32::from(!begins));
        self.workers
            .update(trial.worker, |worker| match trial.risk {
                Risk::None => {}
                Risk::Bystander => worker.bystanders = change(worker.bystanders),
                Risk::Suspect(request) => {
                    let count = change(worker.suspects.map_or(0, |(_, count)| count));
                    worker.suspects = (count > 0).then_some((request, count));
                }
            });
    }

    /// A worker died: replays wait for those that die with it.
    pub(super) fn settle(&mut self) {
        let settle = self.config.death_settle;
        if settle == Micros(0) {
            return;
        }
        let since = self.settling.map_or(self.now, |(since, until)| {
            self.timers.clear(until, Timer::Settled);
            since
        });
        let longest = since.plus(Micros(settle.0.saturating_mul(SETTLES_MAX)));
        let until = self.now.plus(settle).min(longest);
        self.settling = Some((since, until));
        self.timers.set(until, Timer::Settled);
    }

    /// Sequences of this lane may be placed.
    pub(super) fn is_open(&self, lane: Lane) -> bool {
        match lane {
            Lane::Fresh => true,
            Lane::Replay => self.settling.is_none(),
            Lane::Retry => self.settling.is_none() && self.retries_running < self.retries_max(),
        }
    }

    fn retries_max(&self) -> usize {
        let running = self.sequences.len() - self.queue.len();
        let part = running.saturating_mul(self.config.retries_percent as usize) / 100;
        part.max(self.config.retries_min as usize)
    }
}
