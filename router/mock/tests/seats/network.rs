//! Two workers and the connections between them: in order within a connection, in any order across,
//! with loss of connections seen by each side when it pleases.

use std::collections::{HashMap, VecDeque};

use dopd_core::units::Micros;
use dopd_mock::seats::{AbortReason, Batch, Effect, Event, LinkId, LinkMessage, Seats};
use dopd_router::wire::worker::link_frame::Kind;

use crate::bench::config;

/// Pages of each worker: too few for all requests at once.
pub(crate) const POOL: u32 = 10;

/// How one side sees a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Waiting,
    Up,
    Down,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) from: usize,
    pub(crate) to: usize,
    out: u64,
    generation: u64,
    pub(crate) source: Side,
    pub(crate) target: Side,
    pub(crate) is_broken: bool,
    pub(crate) forward: VecDeque<LinkMessage>,
    pub(crate) backward: VecDeque<LinkMessage>,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) now: Micros,
    pub(crate) workers: Vec<Seats>,
    pub(crate) steps: Vec<Option<Batch>>,
    pub(crate) conns: Vec<Conn>,
    generations: u64,
    starts: u64,
    /// This bit of the next write turns.
    pub(crate) flip: Option<usize>,
    /// Writes that were damaged.
    pub(crate) flips: usize,
    /// Uses of each ticket.
    going: HashMap<u64, u32>,
}

impl Network {
    pub(crate) fn new() -> Self {
        let mut network = Self {
            now: Micros(0),
            workers: Vec::new(),
            steps: vec![None, None],
            conns: Vec::new(),
            generations: 0,
            starts: 0,
            flip: None,
            flips: 0,
            going: HashMap::new(),
        };
        for index in 0..2 {
            let seats = network.fresh(index);
            network.workers.push(seats);
        }
        network
    }

    fn fresh(&mut self, index: usize) -> Seats {
        self.starts += 1;
        Seats::new(config(&format!("w{index}"), POOL, self.starts))
    }

    /// Gives a worker an event, carries out what it asks for, and checks it.
    pub(crate) fn handle(&mut self, index: usize, event: Event) {
        let shown = name(&event);
        self.workers[index].handle(self.now, event);
        self.settle(index, shown);
    }

    /// One half of a step: begins one, or ends the one under way.
    pub(crate) fn step(&mut self, index: usize) {
        match self.steps[index].take() {
            None => self.steps[index] = self.workers[index].begin_step(self.now, 1),
            Some(batch) => self.workers[index].finish_step(self.now, &batch, 1),
        }
        self.settle(index, "step");
    }

    fn settle(&mut self, index: usize, after: &str) {
        for effect in self.workers[index].take_effects() {
            self.perform(index, effect, after);
        }
        if let Err(broken) = self.workers[index].check() {
            panic!("{broken} (worker {index}, after {after})");
        }
    }

    fn perform(&mut self, index: usize, effect: Effect, after: &str) {
        match effect {
            Effect::Break(why) => panic!("protocol error of the router: {why} (after {after})"),
            Effect::Abort(link, AbortReason::Protocol(why)) => {
                panic!("protocol error on {link:?}: {why} (after {after})")
            }
            Effect::Abort(link, AbortReason::FenceTimer) => {
                let conn = self.find(index, link).expect("only live links are aborted");
                conn.is_broken = true;
                conn.target = Side::Down;
                conn.forward.clear();
            }
            Effect::Dial { link, peer, .. } => self.dial(index, link, &peer.worker),
            Effect::Say(link, message) => {
                if let Kind::Go(go) = &message.kind {
                    let uses = self.going.entry(go.nonce).or_default();
                    *uses += 1;
                    assert_eq!(*uses, 1, "grant_used_once: {:016x}", go.nonce);
                }
                let message = self.damaged(message);
                if let Some(conn) = self.find(index, link) {
                    match link {
                        LinkId::Out(_) => conn.forward.push_back(message),
                        LinkId::In(_) => conn.backward.push_back(message),
                    }
                }
            }
        }
    }

    /// The message with one bit of its pages turned, if that was wished for.
    fn damaged(&mut self, mut message: LinkMessage) -> LinkMessage {
        if !message.payload.is_empty()
            && let Some(bit) = self.flip.take()
        {
            let mut bytes = message.payload.to_vec();
            let bits = bytes.len() * 8;
            bytes[bit % bits / 8] ^= 1 << (bit % 8);
            message.payload = bytes.into();
            self.flips += 1;
        }
        message
    }

    fn dial(&mut self, from: usize, out: u64, worker: &str) {
        self.generations += 1;
        self.conns.push(Conn {
            from,
            to: usize::from(worker == "w1"),
            out,
            generation: self.generations,
            source: Side::Waiting,
            target: Side::Waiting,
            is_broken: false,
            forward: VecDeque::new(),
            backward: VecDeque::new(),
        });
    }

    fn find(&mut self, index: usize, link: LinkId) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|conn| match link {
            LinkId::Out(out) => conn.from == index && conn.out == out && conn.source == Side::Up,
            LinkId::In(generation) => {
                conn.to == index && conn.generation == generation && conn.target == Side::Up
            }
        })
    }

    /// The connection goes one step of its life: accepted, then connected, or seen down by a side.
    pub(crate) fn progress(&mut self, at: usize, source_first: bool) {
        let Some(conn) = self.conns.get_mut(at) else {
            return;
        };
        let (from, to) = (conn.from, conn.to);
        let (out, generation) = (LinkId::Out(conn.out), conn.generation);
        if !conn.is_broken {
            if conn.target == Side::Waiting {
                conn.target = Side::Up;
                self.handle(to, Event::Accepted(generation));
            } else if conn.source == Side::Waiting {
                conn.source = Side::Up;
                let LinkId::Out(out) = out else { return };
                self.handle(from, Event::LinkUp(out));
            }
        } else if conn.source != Side::Down && (source_first || conn.target != Side::Up) {
            conn.source = Side::Down;
            self.handle(from, Event::LinkDown(out));
        } else if conn.target == Side::Up {
            conn.target = Side::Down;
            conn.forward.clear();
            self.handle(to, Event::LinkDown(LinkId::In(generation)));
        }
        self.conns
            .retain(|conn| !conn.is_broken || conn.source != Side::Down || conn.target == Side::Up);
    }

    /// Delivers the next message to the destination; its bytes left the source's transport.
    pub(crate) fn forward(&mut self, at: usize) {
        let Some(conn) = self.conns.get_mut(at) else {
            return;
        };
        if conn.target != Side::Up {
            return;
        }
        let Some(message) = conn.forward.pop_front() else {
            return;
        };
        let (from, to, out, generation) = (conn.from, conn.to, conn.out, conn.generation);
        let is_source_up = conn.source == Side::Up;
        let bytes = u32::try_from(message.payload.len()).expect("short");
        self.handle(to, Event::Frame(LinkId::In(generation), message));
        if is_source_up && bytes > 0 {
            self.handle(from, Event::Drained(out, bytes));
        }
    }

    /// Delivers the next message to the source.
    pub(crate) fn backward(&mut self, at: usize) {
        let Some(conn) = self.conns.get_mut(at) else {
            return;
        };
        if conn.source != Side::Up {
            return;
        }
        if let Some(message) = conn.backward.pop_front() {
            let (from, out) = (conn.from, conn.out);
            self.handle(from, Event::Frame(LinkId::Out(out), message));
        }
    }

    /// Loses or doubles the next message of a connection, unless it is a write.
    pub(crate) fn tamper(&mut self, at: usize, is_doubled: bool) {
        let Some(conn) = self.conns.get_mut(at) else {
            return;
        };
        for queue in [&mut conn.forward, &mut conn.backward] {
            let Some(message) = queue.front().cloned() else {
                continue;
            };
            if matches!(message.kind, Kind::Write(_)) {
                continue;
            }
            if is_doubled {
                queue.push_front(message);
            } else {
                queue.pop_front();
            }
            return;
        }
    }

    /// The process dies and another starts: it knows nothing, its peers learn it when they look.
    pub(crate) fn crash(&mut self, index: usize) {
        self.workers[index] = self.fresh(index);
        self.steps[index] = None;
        for conn in &mut self.conns {
            conn.is_broken |= conn.from == index || conn.to == index;
            if conn.from == index {
                conn.source = Side::Down;
            }
            if conn.to == index {
                conn.target = Side::Down;
                conn.forward.clear();
            }
        }
        self.conns
            .retain(|conn| conn.source != Side::Down || conn.target == Side::Up);
    }
}

/// What an event is, for messages; printing whole events costs more than the test.
fn name(event: &Event) -> &'static str {
    match event {
        Event::SessionUp(_) => "session up",
        Event::SessionLost => "session lost",
        Event::Command(..) => "command",
        Event::Accepted(_) | Event::LinkUp(_) => "link up",
        Event::LinkDown(_) => "link down",
        Event::Frame(_, message) => match message.kind {
            Kind::Write(_) => "write",
            Kind::End(_) => "end",
            _ => "frame",
        },
        Event::Drained(..) => "drained",
        Event::Preempt(_) => "preempt",
        Event::Drain => "drain",
        Event::Tick => "tick",
    }
}
