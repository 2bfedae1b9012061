//! One worker with few seats, before which prompts wait: in which order do they go? A prompt of n
//! tokens takes n milliseconds. When a prompt is done is the caller's choice.

use std::collections::VecDeque;

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    cost::Timings,
    event::{CloseReason, Event},
    fleet::{Role, WorkerFacts},
    ids::{RequestId, SeatId, SessionId},
    request::{MissedTarget, RejectReason, RequestFacts},
    units::{Micros, Tokens},
};

use super::{closed, joined, report, said, worker};

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) brain: Brain,
    pub(crate) now: Micros,
    /// Who runs, the first placed first.
    pub(crate) running: VecDeque<(SeatId, u64)>,
    /// Requests in the order in which they were placed; a choice each.
    pub(crate) placed: Vec<u64>,
    pub(crate) refused: Vec<(u64, RejectReason, Micros)>,
    /// What their clients are told of targets.
    pub(crate) missed: Vec<MissedTarget>,
    pub(crate) actions: Vec<Action>,
}

pub(crate) const fn millis(millis: u64) -> Micros {
    Micros::from_millis(millis)
}

impl Line {
    pub(crate) fn new(config: BrainConfig, seats: u32) -> Self {
        let mut line = Self {
            brain: Brain::new(config),
            now: Micros(0),
            running: VecDeque::new(),
            placed: Vec::new(),
            refused: Vec::new(),
            missed: Vec::new(),
            actions: Vec::new(),
        };
        line.tell(joined(
            1,
            WorkerFacts {
                num_seqs_max: seats,
                batch_tokens_max: Tokens(u32::MAX),
                model_len_max: Tokens(u32::MAX),
                timings: Timings {
                    compute_us_per_token: 1_000.0,
                    ..Timings::instant()
                },
                ..worker(Role::Mixed, 1 << 28)
            },
        ));
        line
    }

    /// One event, and what goes on at once.
    pub(crate) fn tell(&mut self, event: Event) {
        self.tell_one(event);
        while self.brain.next_wake().is_some_and(|at| at <= self.now) {
            self.tell_one(Event::Woke);
        }
    }

    fn tell_one(&mut self, event: Event) {
        let actions = self.brain.handle(self.now, event);
        for action in &actions {
            match *action {
                Action::Open { seat, sequence, .. } => {
                    let id = sequence.request.0;
                    self.running.push_back((seat, id));
                    self.placed.push(id);
                }
                Action::Reject {
                    sequence,
                    why,
                    retry_after,
                    missed,
                } => {
                    self.refused.push((sequence.request.0, why, retry_after));
                    self.missed.extend(missed);
                }
                _ => {}
            }
        }
        self.actions.extend(actions);
    }

    pub(crate) fn arrive(&mut self, facts: RequestFacts) {
        self.tell(Event::RequestArrived(facts));
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        self.running.retain(|&(_, running)| running != id);
        self.tell(Event::RequestCancelled {
            request: RequestId(id),
        });
    }

    /// The one that was placed first makes so many tokens and ends. Returns who that was.
    pub(crate) fn finish(&mut self, tokens: u32) -> Option<u64> {
        let (seat, id) = self.running.pop_front()?;
        let mut step = report(1, Role::Mixed);
        if tokens > 0 {
            step.tokens = vec![(seat.slot, Tokens(tokens))];
        }
        step.closed = vec![closed(seat.slot.0, CloseReason::Stop)];
        assert_eq!(seat.session, SessionId(1));
        self.tell(said(step));
        Some(id)
    }

    /// So much later; the brain is woken whenever it wants to be.
    pub(crate) fn wait(&mut self, time: Micros) {
        let until = self.now.plus(time);
        while let Some(at) = self.brain.next_wake().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.tell(Event::Woke);
        }
        self.now = until;
    }

    /// Finishes one after the other until nobody runs; returns the order of all that were placed.
    pub(crate) fn drain(&mut self) -> Vec<u64> {
        while self.finish(1).is_some() {}
        std::mem::take(&mut self.placed)
    }
}
