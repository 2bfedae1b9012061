//! Workers that die, come back or slow down.
//!
//! A dead worker's stream breaks with its process, so the router hears of it one network delay
//! later; everything that it had said before still comes. What was on its way to it is lost. A new
//! process has a new session and a new incarnation, and nothing of the old one.

use std::cmp::Reverse;

use dopd_core::{
    event::Event,
    fleet::{Role, WorkerFacts},
    ids::SessionId,
    units::{Pages, Tokens},
};

use super::Engine;
use crate::{
    scenario::{FaultKind, WorkerSpec},
    worker::Worker,
};

impl Engine<'_> {
    /// The fault, or the return, that is due.
    pub(super) fn fault(&mut self) {
        if let Some(&Reverse((at, index))) = self.returns.peek()
            && at <= self.now
        {
            self.returns.pop();
            return self.join(index);
        }
        let Some(&fault) = self.scenario.faults.get(self.faulted) else {
            return;
        };
        self.faulted += 1;
        let index = u32::try_from(fault.worker).unwrap_or(u32::MAX);
        match fault.kind {
            FaultKind::Slows { ratio } => {
                if let Some(post) = self.posts.get_mut(fault.worker) {
                    post.slowness = ratio;
                    post.worker.slow_down(ratio);
                }
            }
            FaultKind::Dies { back_after } => {
                if let Some(after) = back_after {
                    self.returns.push(Reverse((self.now.plus(after), index)));
                }
                self.die(index);
            }
        }
    }

    fn die(&mut self, index: u32) {
        let Some(post) = self.posts.get_mut(index as usize) else {
            return;
        };
        let Some(session) = post.session else { return };
        // Tokens of the steps that are over were on their way already.
        post.worker.last_words(self.now);
        self.say(index, session);
        self.remove(index);
        let at = self.now.plus(self.scenario.network);
        self.losses.push_back((at, session));
    }

    /// Nobody is there any more.
    pub(super) fn remove(&mut self, index: u32) {
        if let Some(post) = self.posts.get_mut(index as usize) {
            post.session = None;
            post.worker.die();
            self.calendar.set(index, None);
        }
    }

    /// The router hears that a session is over.
    pub(super) fn lose(&mut self) {
        if let Some((_, session)) = self.losses.pop_front() {
            self.unheard(session);
            self.tell(Event::SessionLost { session });
        }
    }

    /// What was said in a session is not read any more.
    pub(super) fn unheard(&mut self, session: SessionId) {
        let post = self.post_of(session);
        if let Some(post) = post.and_then(|index| self.posts.get_mut(index as usize))
            && post.heard == Some(session)
        {
            post.heard = None;
        }
    }

    /// A new process attaches.
    pub(super) fn join(&mut self, index: u32) {
        let Some(post) = self.posts.get_mut(index as usize) else {
            return;
        };
        if post.session.is_some() {
            return;
        }
        let Some(spec) = self.scenario.fleet.get(index as usize) else {
            return;
        };
        let session = SessionId(self.sessions.len() as u64);
        self.sessions.push(index);
        let facts = facts(index, session, spec);
        let outcome = post.worker.outcome;
        post.worker = Worker::new(index, spec, &self.scenario.trace, self.terms, facts.clone());
        post.worker.outcome = outcome;
        post.worker.slow_down(post.slowness);
        post.session = Some(session);
        post.heard = Some(session);
        post.seats.clear();
        self.tell(Event::WorkerJoined {
            session,
            worker: Box::new(facts),
        });
    }
}

/// What a worker says of itself.
pub(super) fn facts(index: u32, session: SessionId, spec: &WorkerSpec) -> WorkerFacts {
    let label = match spec.role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
        Role::Mixed => "mixed",
    };
    WorkerFacts {
        name: format!("{label}-{index}"),
        incarnation: session.0 + 1,
        role: spec.role,
        page_size: spec.page_tokens,
        page_bytes: spec
            .kv_bytes_per_token
            .saturating_mul(u64::from(spec.page_tokens)),
        pages_total: Pages(spec.pages_total),
        num_seqs_max: spec.num_seqs_max,
        batch_tokens_max: Tokens(spec.batch_tokens_max),
        model_len_max: Tokens(spec.model_len_max),
        timings: spec.told.clone().unwrap_or_else(|| spec.timings.clone()),
    }
}
