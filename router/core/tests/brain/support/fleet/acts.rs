//! Carries out the brain's actions and checks them, one by one and all together.

use dopd_core::{
    action::{Action, OpenKind},
    ids::{SeatId, SequenceId, SessionId},
    policy::Refuse,
    request::RejectReason,
    units::Micros,
};

use super::{Fleet, Outcome, SeatView, SessionView};
use crate::support::worker::{Body, Command, Ship, Worker};

impl Fleet {
    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Open {
                seat,
                sequence,
                pages,
                kind,
            } => {
                self.act_open(seat, sequence, pages.0, kind);
            }
            Action::Send { seat, to } => self.act_send(seat, to),
            Action::Close { seat } => {
                let view = self
                    .seats
                    .get_mut(&seat)
                    .expect("close of a seat that is not open");
                assert!(!view.is_closing, "closed twice");
                view.is_closing = true;
                let stream = self.streams.get_mut(&view.sequence).expect("known");
                if stream.cur == Some(seat) {
                    // What it still says is nobody's: it is computed again elsewhere.
                    (stream.cur, stream.sending) = (None, None);
                }
                self.command(seat.session, Command::Close { slot: seat.slot });
            }
            Action::Switch { sequence, seat } => {
                let view = *self
                    .seats
                    .get(&seat)
                    .or(self.ended.get(&seat))
                    .expect("switch");
                let (pos, made) = view.arrived.expect("switch to a seat that did not arrive");
                let stream = self.streams.get_mut(&sequence).expect("known");
                assert_eq!(stream.outcome, None, "switch after the end");
                assert!(
                    pos >= stream.have,
                    "the tail lacks tokens that were delivered"
                );
                stream.have = made;
                // One that ended in the same report computes nothing any more.
                stream.cur = self.seats.contains_key(&seat).then_some(seat);
                stream.sending = None;
                if view.is_finished {
                    stream.outcome = Some(Outcome::Finished);
                }
            }
            Action::Reject { sequence, why, .. } => {
                let stream = self.streams.get_mut(&sequence).expect("known");
                assert_eq!(stream.outcome, None, "rejected after the end");
                stream.outcome = Some(Outcome::Rejected(why));
                self.assert_reason(sequence, why);
            }
            Action::Break { session, why } => panic!("{session:?} broke no rule, but {why:?}"),
        }
    }

    /// Whoever is refused for a time was asked to keep it, and did not, or could not.
    fn assert_reason(&self, id: SequenceId, why: RejectReason) {
        let stream = &self.streams[&id];
        let is_over = |due: Micros| due.plus(self.policy.late_max) <= self.now;
        let is_right = match why {
            RejectReason::Late => {
                self.policy.refuse != Refuse::Never
                    && stream.have == 0
                    && stream.due.is_some_and(is_over)
            }
            RejectReason::Unmeetable => {
                self.policy.refuse == Refuse::Early && stream.due.is_some() && stream.placed_at == 0
            }
            RejectReason::DeadlineExceeded => stream.has_deadline,
            _ => true,
        };
        assert!(is_right, "{id:?} is refused as {why:?}: {stream:?}");
    }

    fn act_open(&mut self, seat: SeatId, sequence: SequenceId, pages: u32, kind: OpenKind) {
        let session = self
            .sessions
            .get(&seat.session)
            .expect("open at a session that is over");
        assert!(!session.is_suspect, "new work for a suspect");
        assert!(!session.is_draining, "new work for a worker that drains");
        self.assert_room(seat, pages, session);
        let grows = self.grows();
        let killers = self.killers.get(&sequence.request);
        assert!(
            killers.is_none_or(|dead| dead.len() < 2),
            "a third worker for a request under which two died"
        );
        let stream = self.streams.get_mut(&sequence).expect("known");
        assert_eq!(stream.outcome, None, "open after the end");
        let is_there = stream.cur.is_some_and(|cur| cur.session == seat.session);
        assert!(!is_there, "a second seat where it has one");
        if stream.cur.is_none() {
            stream.placed_at = stream.have;
        }
        let size = session.facts.page_size;
        let whole = (stream.prompt + stream.max).div_ceil(size);
        let least = (stream.prompt + stream.have).div_ceil(size);
        let is_enough = pages == whole || (grows && (least..whole).contains(&pages));
        assert!(is_enough, "{pages} pages for {least} to {whole}");
        let body = match kind {
            OpenKind::Compute => {
                stream.cur = Some(seat);
                stream.sending = None;
                let (prefill_left, pos) = (stream.prompt + stream.have, stream.have);
                Body::Compute {
                    prefill_left,
                    pos,
                    ship: Ship::No,
                }
            }
            OpenKind::Import => Body::Import {
                nonce: 0,
                is_exposed: false,
            },
        };
        let view = SeatView {
            sequence,
            kind,
            pages,
            grant: None,
            arrived: None,
            is_finished: false,
            is_closing: false,
        };
        let (prompt, max) = (stream.prompt, stream.max);
        assert!(
            self.seats.insert(seat, view).is_none(),
            "slot used again before its closed"
        );
        let slot = seat.slot;
        self.command(
            seat.session,
            Command::Open {
                slot,
                prompt,
                pages,
                max,
                body,
            },
        );
    }

    /// The session has the pages and a place for the seat, as far as the router can know.
    fn assert_room(&self, seat: SeatId, pages: u32, session: &SessionView) {
        let of_session = self
            .seats
            .iter()
            .filter(|(id, _)| id.session == seat.session);
        let used: Vec<u32> = of_session.map(|(_, view)| view.pages).collect();
        let total = session.facts.pages_total.0;
        assert!(
            used.iter().sum::<u32>() + pages + session.fenced <= total,
            "no room for an open"
        );
        assert!(
            used.len() < session.facts.num_seqs_max as usize,
            "no seat for an open"
        );
        assert!(
            seat.slot.0 < session.facts.num_seqs_max,
            "slots are not kept small"
        );
    }

    fn act_send(&mut self, seat: SeatId, to: Option<SeatId>) {
        let source = self
            .seats
            .get(&seat)
            .expect("send of a seat that is not open");
        assert!(!source.is_closing, "send after close");
        let stream = self.streams.get_mut(&source.sequence).expect("known");
        assert_eq!(stream.cur, Some(seat), "only the current seat sends");
        stream.sending = to;
        let grant = to.map(|to| {
            let view = self
                .seats
                .get(&to)
                .expect("send to a seat that is not open");
            assert_eq!(
                (view.sequence, view.kind),
                (source.sequence, OpenKind::Import)
            );
            assert!(!view.is_closing, "send to a seat that was given up");
            view.grant.expect("send before opened")
        });
        self.command(
            seat.session,
            Command::Send {
                slot: seat.slot,
                grant,
            },
        );
    }

    fn command(&mut self, session: SessionId, command: Command) {
        if let Some(worker) = self
            .workers
            .iter_mut()
            .find(|worker| worker.session == session)
        {
            worker.inbox.push_back(command);
        }
    }

    /// What holds after every event.
    pub(super) fn check(&self) {
        for (id, stream) in &self.streams {
            let Some(to) = stream.sending.filter(|_| stream.outcome.is_none()) else {
                continue;
            };
            let seat = |seat| self.seats.get(&seat).filter(|view| view.sequence == *id);
            let source = stream.cur.and_then(seat);
            let gone = seat(to).is_none_or(|view| view.is_closing);
            let lives = source.is_some_and(|view| !view.is_closing);
            assert!(
                !(gone && lives),
                "{id:?}: destination given up, source not told to stay"
            );
        }
        for (id, view) in &self.seats {
            let is_over = self.streams[&view.sequence].outcome.is_some();
            assert!(
                !is_over || view.is_closing,
                "{id:?} of an ended sequence stays open"
            );
            let session = self.sessions.get(&id.session);
            assert!(
                view.is_closing || session.is_some_and(|session| !session.is_suspect),
                "{id:?} of an ejected worker stays open"
            );
        }
        for session in self.brain.status().sessions {
            let of_session = self
                .seats
                .iter()
                .filter(|(id, _)| id.session == session.session);
            let opened: u64 = of_session.map(|(_, view)| u64::from(view.pages)).sum();
            assert!(
                session.pages_used >= opened,
                "the account forgot an open seat"
            );
            let total = u64::from(session.pages_total.0);
            assert!(
                self.grows() || session.pages_used <= total,
                "the account promised more than the pool"
            );
        }
    }

    /// No seat, no page, no timer, no waiting request is left, anywhere.
    pub(crate) fn assert_clean(&self) {
        for (id, stream) in &self.streams {
            assert!(stream.outcome.is_some(), "{id:?} never ended: {stream:?}");
            if stream.outcome == Some(Outcome::Finished) {
                assert!(
                    (1..=stream.max).contains(&stream.have),
                    "{id:?} has {}",
                    stream.have
                );
            }
        }
        assert!(self.seats.is_empty(), "seats are left: {:?}", self.seats);
        let status = self.brain.status();
        assert_eq!((status.requests_waiting, status.tokens_waiting), (0, 0));
        assert_eq!((status.sequences_running, status.handoffs_running), (0, 0));
        for session in &status.sessions {
            let left = (
                session.pages_used,
                session.seats_open,
                session.prefill_tokens_pending,
            );
            assert_eq!(left, (0, 0, 0), "{session:?}");
        }
        assert!(
            self.workers.iter().all(Worker::is_empty),
            "a worker holds something"
        );
        assert_eq!(status.violations_total, 0);
    }
}
