//! The brain among well-behaved workers, faults and late messages. Everything that could go wrong
//! between them is the caller's choice; after every event the rules of the hand-off are checked.

mod acts;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, Suspicion},
    fleet::WorkerFacts,
    ids::{RequestId, SeatId, SequenceId, SessionId},
    log,
    policy::{PolicyConfig, Reserve},
    request::{RejectReason, RequestFacts},
    units::Micros,
};

use super::NEVER;
use super::worker::{End, Grant, Report, Worker};

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished,
    Rejected(RejectReason),
    /// By the client or by a stop string.
    GivenUp,
}

/// What dispatch knows of one answer.
#[derive(Debug)]
pub(crate) struct Stream {
    prompt: u32,
    max: u32,
    /// Answer tokens that the client has.
    pub(crate) have: u32,
    cur: Option<SeatId>,
    /// `have` when it was last placed.
    placed_at: u32,
    /// Where cur was told to send to.
    sending: Option<SeatId>,
    /// When its first token is due, if somebody asked for that.
    due: Option<Micros>,
    has_deadline: bool,
    pub(crate) outcome: Option<Outcome>,
}

/// An open seat as the router sees it: from Open until `closed` is read.
#[derive(Clone, Copy, Debug)]
struct SeatView {
    sequence: SequenceId,
    kind: OpenKind,
    pages: u32,
    grant: Option<Grant>,
    /// Answer tokens when it arrived, and made since.
    arrived: Option<(u32, u32)>,
    is_finished: bool,
    is_closing: bool,
}

#[derive(Debug)]
struct SessionView {
    facts: WorkerFacts,
    fenced: u32,
    is_suspect: bool,
    is_draining: bool,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) brain: Brain,
    policy: PolicyConfig,
    pub(crate) now: Micros,
    pub(crate) workers: Vec<Worker>,
    pub(crate) streams: BTreeMap<SequenceId, Stream>,
    /// Reports of sessions that are over.
    pub(crate) late: VecDeque<Report>,
    pub(crate) links: VecDeque<End>,
    seats: BTreeMap<SeatId, SeatView>,
    /// Seats that ended in the report at hand.
    ended: BTreeMap<SeatId, SeatView>,
    sessions: BTreeMap<SessionId, SessionView>,
    nonces: u64,
    sessions_ever: u64,
    /// Workers that died while they held the current seat of a request.
    killers: BTreeMap<RequestId, BTreeSet<SessionId>>,
    /// Everything that happened.
    pub(crate) events: Vec<(Micros, Event)>,
    /// The event log, as lines.
    pub(crate) log: Vec<String>,
    /// Everything that was decided.
    pub(crate) trace: Vec<Action>,
}

impl Fleet {
    pub(crate) fn new(config: BrainConfig) -> Self {
        let header = log::encode_header(&config).expect("plain values");
        Self {
            policy: config.policy.clone(),
            brain: Brain::new(config),
            now: Micros(0),
            workers: Vec::new(),
            streams: BTreeMap::new(),
            late: VecDeque::new(),
            links: VecDeque::new(),
            seats: BTreeMap::new(),
            ended: BTreeMap::new(),
            sessions: BTreeMap::new(),
            nonces: 0,
            sessions_ever: 0,
            killers: BTreeMap::new(),
            events: Vec::new(),
            log: vec![line(header)],
            trace: Vec::new(),
        }
    }

    /// Seats are promised less than their longest answer.
    fn grows(&self) -> bool {
        self.policy.reserve == Reserve::FuturePeak
    }

    /// Tells the brain, does what it says, checks the rules.
    pub(crate) fn tell(&mut self, event: Event) {
        let entry = log::Line::begin(self.now, &event).expect("plain values");
        self.events.push((self.now, event.clone()));
        let actions = self.brain.handle(self.now, event);
        self.log
            .push(line(entry.end(&actions).expect("plain values")));
        for action in &actions {
            self.act(action);
        }
        self.trace.extend(actions);
        self.check();
    }

    pub(crate) fn arrive(&mut self, facts: RequestFacts) {
        for choice in 0..facts.choices {
            let stream = Stream {
                prompt: facts.prompt_tokens.0,
                max: facts.max_tokens.0,
                have: 0,
                cur: None,
                placed_at: 0,
                sending: None,
                due: facts.slo.ttft.map(|ttft| self.now.plus(ttft)),
                has_deadline: facts.deadline < NEVER,
                outcome: None,
            };
            self.streams.insert(
                SequenceId {
                    request: facts.id,
                    choice,
                },
                stream,
            );
        }
        self.tell(Event::RequestArrived(facts));
    }

    /// A new process joins.
    pub(crate) fn join(&mut self, mut facts: WorkerFacts) {
        facts.name = format!("worker {}", self.sessions_ever);
        facts.incarnation = self.sessions_ever + 1;
        self.attach(facts);
    }

    fn attach(&mut self, facts: WorkerFacts) {
        self.sessions_ever += 1;
        let session = SessionId(self.sessions_ever);
        let grows = self.grows();
        self.workers
            .push(Worker::new(session, facts.clone(), grows));
        let view = SessionView {
            facts: facts.clone(),
            fenced: 0,
            is_suspect: false,
            is_draining: false,
        };
        self.sessions.insert(session, view);
        self.tell(Event::WorkerJoined {
            session,
            worker: Box::new(facts),
        });
    }

    /// The process dies: what it said and was not read comes late, after the session's end.
    pub(crate) fn crash(&mut self, index: usize) {
        let worker = self.workers.remove(index);
        self.late.extend(worker.outbox);
        self.lose(worker.session);
    }

    /// The stream breaks: the process drops everything and is back. Its death is forgiven.
    pub(crate) fn break_stream(&mut self, index: usize) {
        let worker = self.workers.remove(index);
        self.late.extend(worker.outbox);
        for request in self.lose(worker.session) {
            if let Some(dead) = self.killers.get_mut(&request) {
                dead.remove(&worker.session);
            }
        }
        self.attach(worker.facts);
    }

    /// The router ends the session, and blames nobody.
    pub(crate) fn break_off(&mut self, index: usize) {
        let Worker { session, facts, .. } = self.workers.remove(index);
        self.forget(session);
        self.tell(Event::SessionBroken { session });
        self.attach(facts);
    }

    /// Requests on whose account it is.
    fn lose(&mut self, session: SessionId) -> Vec<RequestId> {
        let view = self.sessions.get(&session);
        let is_death = view.is_some_and(|view| !view.is_draining);
        let blamed = if is_death {
            self.blame(session)
        } else {
            Vec::new()
        };
        self.forget(session);
        self.tell(Event::SessionLost { session });
        blamed
    }

    fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.seats.retain(|seat, _| seat.session != session);
        for stream in self.streams.values_mut() {
            if stream.cur.is_some_and(|seat| seat.session == session) {
                (stream.cur, stream.sending) = (None, None);
            }
        }
    }

    pub(crate) fn suspect(&mut self, index: usize, why: Suspicion) {
        let session = self.workers[index].session;
        self.workers[index].is_stuck |= why == Suspicion::Stuck;
        let was_suspect = self
            .sessions
            .get_mut(&session)
            .is_some_and(|view| std::mem::replace(&mut view.is_suspect, true));
        if why == Suspicion::Stuck && !was_suspect {
            self.blame(session);
        }
        self.tell(Event::WorkerSuspected { session, why });
    }

    /// A worker died: every request whose current seat it holds has one more on its account, unless
    /// it is not the first and the sequence had made a token there.
    fn blame(&mut self, session: SessionId) -> Vec<RequestId> {
        let mut blamed = Vec::new();
        for (id, stream) in &self.streams {
            let is_here = stream.cur.is_some_and(|seat| seat.session == session);
            if is_here && stream.outcome.is_none() {
                let dead = self.killers.entry(id.request).or_default();
                if (dead.is_empty() || stream.have == stream.placed_at) && dead.insert(session) {
                    blamed.push(id.request);
                }
            }
        }
        blamed
    }

    pub(crate) fn give_up(&mut self, id: SequenceId, event: Event) {
        for (sequence, stream) in &mut self.streams {
            let is_meant = match event {
                Event::RequestCancelled { request } => sequence.request == request,
                _ => *sequence == id,
            };
            if is_meant {
                stream.outcome.get_or_insert(Outcome::GivenUp);
            }
        }
        self.tell(event);
    }

    pub(crate) fn obey(&mut self, index: usize) {
        self.nonces += 1;
        self.workers[index].obey(self.nonces);
    }

    /// The shipments of this worker reach their destinations' first page.
    pub(crate) fn begin(&mut self, index: usize) {
        for grant in self.workers[index].shipments() {
            if let Some(to) = self
                .workers
                .iter_mut()
                .find(|to| to.session == grant.seat.session)
            {
                to.expose(grant);
            }
        }
    }

    pub(crate) fn deliver_end(&mut self, is_good: bool) {
        let Some(end) = self.links.pop_front() else {
            return;
        };
        let session = end.to.seat.session;
        if let Some(worker) = self
            .workers
            .iter_mut()
            .find(|worker| worker.session == session)
        {
            worker.expose(end.to);
            worker.end_arrives(end, is_good);
        }
    }

    pub(crate) fn deliver_report(&mut self, index: usize) {
        if let Some(report) = self.workers[index].outbox.pop_front() {
            self.read(report);
        }
    }

    /// A report of a session that is over: nothing may come of it.
    pub(crate) fn deliver_late(&mut self) {
        if let Some(report) = self.late.pop_front() {
            // What is due is done before, so that what follows is this report's.
            self.tell(Event::Woke);
            let decided = self.trace.len();
            self.tell(Event::StepReported(Box::new(report.step)));
            assert_eq!(self.trace.len(), decided, "an old session was heard");
        }
    }

    /// What dispatch does with a report, then the brain.
    fn read(&mut self, report: Report) {
        let step = report.step;
        let at = |slot| SeatId {
            session: step.session,
            slot,
        };
        if let Some(view) = self.sessions.get_mut(&step.session) {
            view.fenced = step.load.pages_fenced.0;
            view.is_suspect &= step.is_stuck;
            view.is_draining = step.draining;
        }
        for grant in report.grants {
            if let Some(view) = self.seats.get_mut(&grant.seat) {
                view.grant = Some(grant);
            }
        }
        for &(slot, pos) in &step.arrived {
            if let Some(view) = self.seats.get_mut(&at(slot)) {
                view.arrived = Some((pos.0, pos.0));
            }
        }
        for (&slot, &pos) in &report.positions {
            self.token(at(slot), pos);
        }
        for end in &step.closed {
            self.closed(at(end.slot), end.why);
        }
        self.tell(Event::StepReported(Box::new(step)));
        self.ended.clear();
    }

    fn token(&mut self, seat: SeatId, pos: u32) {
        let Some(view) = self.seats.get_mut(&seat) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&view.sequence) else {
            return;
        };
        if stream.cur == Some(seat) {
            stream.have += 1;
            assert_eq!(
                stream.have, pos,
                "a token was lost, doubled or out of order"
            );
        } else if let Some((_, made)) = &mut view.arrived {
            *made = pos;
        }
    }

    fn closed(&mut self, seat: SeatId, why: CloseReason) {
        let mut view = self.seats.remove(&seat).expect("one closed per open");
        view.is_finished = matches!(why, CloseReason::Stop | CloseReason::Length);
        let stream = self.streams.get_mut(&view.sequence).expect("known");
        if stream.cur == Some(seat) {
            // Its number may name another seat from now on.
            (stream.cur, stream.sending) = (None, None);
            if view.is_finished && stream.outcome.is_none() {
                stream.outcome = Some(Outcome::Finished);
            }
        }
        self.ended.insert(seat, view);
    }
}

fn line(bytes: Vec<u8>) -> String {
    let text = String::from_utf8(bytes).expect("JSON is text");
    text.strip_suffix('\n').expect("a line ends").to_owned()
}
