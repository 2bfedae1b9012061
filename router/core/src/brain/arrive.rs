//! Requests that come and go, and time that passes.

use std::sync::Arc;

use super::{
    Brain,
    breaker::Outcome,
    explain::{Chosen, Saw},
    peak::Stay,
    queue::{Lane, QueueKey},
    sequences::{Phase, Sequence},
    table::{Input, PhaseKind},
    timers::{DUE_MAX, Timer},
};
use crate::{
    ids::{RequestId, SequenceId, SessionId},
    request::{RejectReason, RequestFacts},
    units::Tokens,
};

impl Brain {
    pub(super) fn arrive(&mut self, facts: &RequestFacts) {
        if self.sequences.has_request(facts.id) {
            return;
        }
        let choices = facts.choices.max(1);
        let id = |choice| SequenceId {
            request: facts.id,
            choice,
        };
        if let Some(refusal) = self.refusal(facts) {
            let reject = |choice| refusal.of_sequence(id(choice));
            self.actions.extend((0..choices).map(reject));
            self.is_turned_away(facts, refusal.why);
            self.explain_refusal(facts, id(0), refusal.why);
            return;
        }
        let request = self
            .sequences
            .add_request(facts.id, facts.deadline, choices);
        self.timers.set(facts.deadline, Timer::Deadline(facts.id));
        let targets = self.targets(facts);
        let is_long = self.fair.arrived(facts.prompt_tokens);
        for choice in 0..choices {
            self.arrivals += 1;
            let key = self.sequences.add(Sequence {
                id: id(choice),
                request,
                prompt: facts.prompt_tokens,
                max_tokens: facts.max_tokens,
                is_of_many: choices > 1,
                answer: Tokens(0),
                queue_key: QueueKey {
                    lane: Lane::Fresh,
                    priority: facts.priority,
                    account: self.queue.share.enter(facts.tenant, facts.weight),
                    rank: 0,
                    arrival: self.arrivals,
                },
                phase: Phase::Wait { timer: None },
                replays: 0,
                preemptions: 0,
                range: 0,
                replay_tokens: 0,
                placed_at: Tokens(0),
                trial: None,
                moves: 0,
                deadline: facts.deadline,
                arrived: self.now,
                prefill: targets.prefill,
                ttft_due: targets.ttft_due,
                is_asked: facts.slo.ttft.is_some(),
                tpot: targets.tpot,
                order_key: facts.order_key,
                is_long,
                is_judged: false,
                is_paid: false,
                prefix: Arc::clone(&facts.prefix),
                leaves: None,
                placed: self.now,
                first: None,
            });
            self.wait(key);
            self.note_plain(key, Chosen::Queue);
        }
    }

    fn explain_refusal(&mut self, facts: &RequestFacts, id: SequenceId, why: RejectReason) {
        let targets = self.targets(facts);
        let saw = Saw {
            prefill_us: targets.prefill.0,
            target_us: Some(targets.ttft_due.since(self.now).0),
            ..Saw::of(facts, &self.queue)
        };
        self.note_refused(id, saw, why);
    }

    pub(super) fn cancel(&mut self, request: RequestId) {
        for key in self.sequences.of_request(request) {
            self.apply(key, Input::Cancel);
        }
    }

    pub(super) fn stop(&mut self, sequence: SequenceId) {
        if let Some(key) = self.sequences.key_of(sequence) {
            self.learn_length(key);
            self.apply(key, Input::Cancel);
        }
    }

    /// Moves a running sequence, if the destination has room and the sequence may move once more.
    pub(super) fn move_to(&mut self, sequence: SequenceId, to: SessionId) {
        let Some(key) = self.sequences.key_of(sequence) else {
            return;
        };
        let Some(worker) = self.workers.key_of(to) else {
            return;
        };
        let (Some(sequence), Some(destination)) =
            (self.sequences.get(key), self.workers.get(worker))
        else {
            return;
        };
        let cur = sequence.phase.cur();
        let is_reached = cur
            .is_some_and(|cur| cur.worker != worker && !self.pairs.is_shut((cur.worker, worker)));
        if is_reached
            && sequence.moves < self.config.moves_max
            && destination.can_take(&self.ask(sequence), Stay::Import)
        {
            self.apply(key, Input::MoveTo(worker));
        }
    }

    /// Notices when the last usable worker goes, and when one is back.
    pub(super) fn watch_workers(&mut self) {
        match (self.workers.is_any_usable(), self.no_worker_since) {
            (true, Some(since)) => {
                self.timers
                    .clear(since.plus(self.config.no_worker_wait), Timer::NoWorker);
                self.no_worker_since = None;
            }
            (false, None) => {
                self.timers
                    .set(self.now.plus(self.config.no_worker_wait), Timer::NoWorker);
                self.no_worker_since = Some(self.now);
            }
            _ => {}
        }
    }

    /// Does a part of what is due; `next_wake` has the rest. Of the workers that are about to be
    /// free it takes those of one time, so that a wake places what one worker takes.
    pub(super) fn wake(&mut self) {
        if let Some(first) = self.workers.next_due().filter(|&at| at <= self.now) {
            self.workers.advance(first);
        }
        for _ in 0..DUE_MAX {
            let Some((at, timer)) = self.timers.pop_due(self.now) else {
                break;
            };
            if self.due(timer) {
                self.timers.set(at, timer);
                break;
            }
        }
    }

    /// Does what a timer is for. True: only a part of it, which is enough for one event.
    fn due(&mut self, timer: Timer) -> bool {
        match timer {
            Timer::NoWorker => return self.no_worker(),
            Timer::Backoff(worker) => {
                self.workers.update(worker, |worker| worker.backoff = None);
            }
            Timer::Waited(key) => self.waited(key),
            Timer::Late(key) => self.late(key),
            Timer::Breaker(worker) => self.judge(worker, Outcome::Due),
            Timer::Pair(pair) => self.judge_pair(pair, Outcome::Due),
            Timer::Settled => self.settling = None,
            Timer::Handoff(key) => {
                self.judge_handoff(key, Outcome::Failed);
                self.apply(key, Input::HandoffTimer);
            }
            Timer::Deadline(request) => {
                for key in self.sequences.of_request(request) {
                    self.apply(key, Input::Deadline);
                }
            }
        }
        false
    }

    /// No worker for as long as anybody waits: those give up that waited from before, so many at a
    /// time. True if there may be more.
    fn no_worker(&mut self) -> bool {
        let now = self.now;
        let waited = |key: &usize| {
            let phase = self.sequences.get(*key).map(|sequence| sequence.phase);
            matches!(phase, Some(Phase::Wait { timer }) if timer.is_none_or(|at| at <= now))
        };
        let keys: Vec<usize> = self.queue.iter().filter(waited).take(DUE_MAX).collect();
        for &key in &keys {
            self.apply(key, Input::NoWorker);
        }
        keys.len() == DUE_MAX
    }

    /// A sequence that found no worker when it came has waited its time.
    fn waited(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get_mut(key) else {
            return;
        };
        if sequence.phase.kind() != PhaseKind::Wait {
            return;
        }
        sequence.phase = Phase::Wait { timer: None };
        let since = self
            .no_worker_since
            .map(|since| since.plus(self.config.no_worker_wait));
        if since.is_some_and(|at| at <= self.now) {
            self.apply(key, Input::NoWorker);
        }
    }
}
