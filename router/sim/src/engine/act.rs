//! What dispatch does in the router: actions become commands, reports are read before the brain
//! gets them.

use dopd_core::{
    action::{Action, OpenKind},
    event::{CloseReason, StepReport},
    ids::{SeatId, SequenceId, SessionId, SlotId},
    units::Pages,
};

use super::{Engine, SeatView, index_of};
use crate::{
    scenario::TraceRequest,
    worker::{Command, Opening, SeatRef},
};

impl Engine<'_> {
    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Open {
                seat,
                sequence,
                pages,
                kind,
            } => self.open(seat, sequence, pages, kind),
            Action::Send { seat, to } => {
                let to = to.and_then(|to| self.seat_ref(to));
                let slot = seat.slot.0;
                let shared = |to: SeatRef| {
                    let post = self.posts.get(to.worker as usize);
                    post.map_or(0, |post| post.worker.shared_tokens(to.slot, to.life))
                };
                let skip = to.map_or(0, shared);
                self.command_to(seat.session, Command::Send { slot, to, skip });
            }
            Action::Close { seat } => {
                let slot = seat.slot.0;
                self.command_to(seat.session, Command::Close { slot });
            }
            Action::Switch { sequence, seat } => {
                let have = self.view(seat).and_then(|view| view.made);
                let index = index_of(sequence);
                self.requests.switched(index, seat, have, self.now);
            }
            Action::Reject { sequence, .. } => self.requests.rejected(index_of(sequence), self.now),
            Action::Break { session, .. } => self.broken(session),
        }
    }

    /// The brain takes a simulated worker for a liar: a defect of one of them. The worker is gone
    /// for good, and the run says so.
    fn broken(&mut self, session: SessionId) {
        self.breaks += 1;
        self.unheard(session);
        if let Some(index) = self.post_of(session) {
            self.remove(index);
        }
    }

    fn open(&mut self, seat: SeatId, sequence: SequenceId, pages: Pages, kind: OpenKind) {
        let index = index_of(sequence);
        let Some(request) = self.scenario.trace.requests.get(index) else {
            return;
        };
        self.lives = self.lives.wrapping_add(1);
        let is_import = kind == OpenKind::Import;
        if !is_import {
            let post = self.post_of(seat.session);
            let spec = post.and_then(|post| self.scenario.fleet.get(post as usize));
            let role = spec.map(|spec| spec.role);
            self.requests.opened(index, seat, role);
        }
        let opening = Opening {
            life: self.lives,
            request: u32::try_from(index).unwrap_or(u32::MAX),
            priority: request.priority,
            pages: pages.0,
            prompt: request.prompt_tokens,
            have: self.requests.have(index),
            output: request.output_tokens,
            max_tokens: self.max_tokens(request),
            is_import,
        };
        if let Some(post) = self.post_of(seat.session) {
            let seats = &mut self.posts[post as usize].seats;
            let place = seat.slot.0 as usize;
            if seats.len() <= place {
                seats.resize(place + 1, None);
            }
            seats[place] = Some(SeatView {
                request: opening.request,
                life: self.lives,
                made: None,
            });
        }
        let slot = seat.slot.0;
        self.command_to(seat.session, Command::Open { slot, opening });
    }

    /// What requests ask for: the brain must not see the answer's length.
    pub(super) fn max_tokens(&self, request: &TraceRequest) -> u32 {
        let room = self.len_max.saturating_sub(request.prompt_tokens);
        request
            .output_tokens
            .max(self.scenario.max_tokens.min(room))
    }

    fn command_to(&mut self, session: SessionId, command: Command) {
        let Some(index) = self.post_of(session) else {
            return;
        };
        let at = self.now.plus(self.scenario.network);
        self.commands.push_back((at, index, session, command));
    }

    fn seat_ref(&self, seat: SeatId) -> Option<SeatRef> {
        Some(SeatRef {
            worker: self.post_of(seat.session)?,
            slot: seat.slot.0,
            life: self.view(seat)?.life,
        })
    }

    fn view(&self, seat: SeatId) -> Option<&SeatView> {
        let post = self.posts.get(self.post_of(seat.session)? as usize)?;
        post.seats.get(seat.slot.0 as usize)?.as_ref()
    }

    pub(super) fn report(&mut self) {
        let Some((_, report)) = self.reports.pop_front() else {
            return;
        };
        let session = report.session;
        let post = self.post_of(session).map(|index| index as usize);
        // A session that is over is not heard.
        let Some(post) = post.filter(|&post| self.posts[post].heard == Some(session)) else {
            return;
        };
        self.read(post, &report);
        let actions = self.brain.handle_report(self.now, &report);
        self.carry_out(actions);
        self.reports_read.push(report);
    }

    /// Counts of tokens and ends, as the front has them before the brain hears.
    fn read(&mut self, post: usize, report: &StepReport) {
        let session = report.session;
        let seat = |slot: SlotId| SeatId { session, slot };
        let now = self.now;
        for &(slot, pos) in &report.arrived {
            if let Some(Some(view)) = self.posts[post].seats.get_mut(slot.0 as usize) {
                view.made = Some(pos.0);
            }
        }
        for &(slot, tokens) in &report.tokens {
            if let Some(Some(view)) = self.posts[post].seats.get_mut(slot.0 as usize) {
                view.made = view.made.map(|made| made + tokens.0);
                self.requests.made(view.request, seat(slot), tokens.0, now);
            }
        }
        for &(slot, tokens) in &report.reused {
            if let Some(Some(view)) = self.posts[post].seats.get_mut(slot.0 as usize) {
                self.requests.reused(view.request, tokens.0);
            }
        }
        for closed in &report.closed {
            let place = closed.slot.0 as usize;
            let view = self.posts[post].seats.get_mut(place).and_then(Option::take);
            let Some(view) = view else { continue };
            let seat = seat(closed.slot);
            match closed.why {
                CloseReason::Stop | CloseReason::Length => {
                    self.requests.finished(view.request, seat, now);
                }
                CloseReason::Preempted => self.requests.preempted(view.request, seat),
                _ => {}
            }
        }
    }
}
