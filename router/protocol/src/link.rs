//! Data links between workers: connections whose ends come and go on their own, whose messages
//! arrive in order or not at all. What lands after a break lands, until its end is seen.

use dopd_core::units::Micros;
use dopd_mock::{
    backoff,
    seats::{AbortReason, Effect, Event, LinkId, LinkMessage},
};
use dopd_router::wire::worker::link_frame::Kind;

use crate::{
    clock::Ev,
    pipe::{Arrival, Pipe},
    process::incarnation,
    world::World,
};

/// Time after which a dial gives up that nobody answers.
const DIAL_TIMEOUT_US: u64 = 2_000_000;

/// How an end sees its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Waiting,
    Up,
    Down,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) from: usize,
    pub(crate) from_life: u32,
    pub(crate) to: usize,
    pub(crate) to_life: u32,
    /// Incarnation that must answer.
    wanted: u64,
    /// The source's name for it; the destination's is its index.
    out: u64,
    pub(crate) source: Side,
    pub(crate) target: Side,
    /// What is said from now on is lost.
    pub(crate) is_broken: bool,
    pub(crate) forward: Pipe<LinkMessage>,
    pub(crate) backward: Pipe<LinkMessage>,
}

impl Conn {
    pub(crate) fn is_over(&self) -> bool {
        self.source == Side::Down && self.target != Side::Up
    }
}

impl World {
    /// Carries out what a seat table asked for.
    pub(crate) fn perform(&mut self, worker: usize) {
        while self.processes[worker].seats.has_effects() {
            for effect in self.processes[worker].seats.take_effects() {
                match effect {
                    Effect::Dial {
                        link,
                        peer,
                        attempt,
                    } => self.dial_link(worker, link, &peer.worker, peer.incarnation, attempt),
                    Effect::Say(link, message) => self.say(worker, link, message),
                    Effect::Abort(link, reason) => self.abort(worker, link, &reason),
                    Effect::Break(why) => {
                        self.clock
                            .broken(format!("w{worker}: protocol error of the router: {why}"));
                    }
                }
            }
        }
    }

    fn dial_link(&mut self, from: usize, out: u64, peer: &str, wanted: u64, attempt: u32) {
        let found = self.processes.iter().position(|other| other.name == peer);
        let Some(to) = found else {
            return self.clock.broken(format!("w{from} dials {peer:?}"));
        };
        let index = self.conns.len();
        self.conns.push(Conn {
            from,
            from_life: self.processes[from].life,
            to,
            to_life: self.processes[to].life,
            wanted,
            out,
            source: Side::Waiting,
            target: Side::Waiting,
            is_broken: false,
            forward: Pipe::default(),
            backward: Pipe::default(),
        });
        let wait = backoff::wait(attempt, self.clock.random.any());
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let delay = self.clock.random.delay_us(self.plan.delay_us);
        self.clock.after(wait_us + delay, Ev::Accept(index));
    }

    /// The dial is at its destination.
    pub(crate) fn accept(&mut self, index: usize) {
        let now = self.clock.now();
        let conn = &self.conns[index];
        let (from, from_life, to) = (conn.from, conn.from_life, conn.to);
        if conn.source == Side::Down || !self.is_alive(from, from_life) {
            return;
        }
        let process = &self.processes[to];
        let is_right = incarnation(to, process.life) == conn.wanted;
        let delay = self.clock.random.delay_us(self.plan.delay_us);
        if !process.is_up || !is_right {
            return self.clock.after(delay, Ev::LinkDown(index, true));
        }
        if process.frozen > now {
            return self.clock.after(DIAL_TIMEOUT_US, Ev::LinkDown(index, true));
        }
        let life = process.life;
        let conn = &mut self.conns[index];
        conn.target = Side::Up;
        conn.to_life = life;
        self.clock
            .say(|| format!("link    {index}: w{from} to w{to}"));
        self.tell(to, Event::Accepted(index as u64));
        self.clock.after(delay, Ev::LinkUp(index));
    }

    /// The source learns that it is connected.
    pub(crate) fn link_up(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let (from, life, out) = (conn.from, conn.from_life, conn.out);
        if conn.source == Side::Waiting && !conn.is_broken && self.is_alive(from, life) {
            self.conns[index].source = Side::Up;
            self.tell(from, Event::LinkUp(out));
        } else if !self.is_alive(from, life) {
            self.see_down(index, false, 1_000);
        } else {
            self.clock.after(0, Ev::LinkDown(index, true));
        }
    }

    fn tell(&mut self, worker: usize, event: Event) {
        let time = self.processes[worker].time(self.clock.now());
        self.processes[worker].seats.handle(time, event);
        self.settle_worker(worker);
    }

    /// The link of this name at this end, if it is up there.
    fn find(&self, worker: usize, link: LinkId) -> Option<usize> {
        let life = self.processes[worker].life;
        match link {
            LinkId::In(index) => {
                let index = usize::try_from(index).ok()?;
                let conn = self.conns.get(index)?;
                (conn.to == worker && conn.to_life == life && conn.target == Side::Up)
                    .then_some(index)
            }
            LinkId::Out(out) => self.conns.iter().rposition(|conn| {
                conn.from == worker
                    && conn.from_life == life
                    && conn.out == out
                    && conn.source == Side::Up
            }),
        }
    }

    fn say(&mut self, worker: usize, link: LinkId, message: LinkMessage) {
        let Some(index) = self.find(worker, link) else {
            return;
        };
        self.clock.say(|| {
            format!(
                "w{worker}      -> link {index} {}",
                crate::show::link(&message)
            )
        });
        if let Kind::Go(go) = &message.kind {
            let uses = self.uses.entry(go.nonce).or_default();
            *uses += 1;
            if *uses > 1 {
                let what = format!("grant_used_once: {:016x} was used {uses} times", go.nonce);
                self.clock.broken(what);
            }
        }
        let mut message = message;
        let copies = self.befall(index, &mut message);
        let conn = &mut self.conns[index];
        if conn.is_broken {
            return;
        }
        for _ in 0..copies {
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            let (now, message) = (self.clock.now(), message.clone());
            match link {
                LinkId::Out(_) => {
                    let at = conn.forward.push(now, delay, message);
                    self.clock.at(at, Ev::Forward(index));
                }
                LinkId::In(_) => {
                    let at = conn.backward.push(now, delay, message);
                    self.clock.at(at, Ev::Backward(index));
                }
            }
        }
    }

    fn abort(&mut self, worker: usize, link: LinkId, reason: &AbortReason) {
        match reason {
            AbortReason::FenceTimer => self.counts.aborts += 1,
            AbortReason::Protocol(why) => {
                self.clock
                    .broken(format!("w{worker}: protocol error on {link:?}: {why}"));
            }
        }
        let Some(index) = self.find(worker, link) else {
            return;
        };
        self.clock
            .say(|| format!("w{worker}      aborts link {index}: {reason:?}"));
        let is_source = matches!(link, LinkId::Out(_));
        self.close(index, is_source);
    }

    /// This end is closed by its own worker; the other will see it.
    fn close(&mut self, index: usize, is_source: bool) {
        let conn = &mut self.conns[index];
        if is_source {
            conn.source = Side::Down;
        } else {
            conn.target = Side::Down;
        }
        if !conn.is_broken {
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            self.see_down(index, !is_source, delay);
        }
    }

    /// An end will see that its peer is gone: after what is under way to it.
    pub(crate) fn see_down(&mut self, index: usize, is_source: bool, delay_us: u64) {
        let conn = &self.conns[index];
        let pipe = if is_source {
            &conn.backward
        } else {
            &conn.forward
        };
        let at = self.clock.now().plus(Micros(delay_us));
        let at = at.max(pipe.last()).max(pipe.held_until());
        self.clock
            .at(at.plus(Micros(1)), Ev::LinkDown(index, is_source));
    }

    /// An end sees that its link is gone, or that its dial failed.
    pub(crate) fn link_down(&mut self, index: usize, is_source: bool) {
        let conn = &mut self.conns[index];
        let (worker, life, side, link) = if is_source {
            let link = LinkId::Out(conn.out);
            (conn.from, conn.from_life, &mut conn.source, link)
        } else {
            let link = LinkId::In(index as u64);
            (conn.to, conn.to_life, &mut conn.target, link)
        };
        let was = std::mem::replace(side, Side::Down);
        let is_seen = was == Side::Up || (is_source && was == Side::Waiting);
        if !is_seen {
            return;
        }
        if self.conns[index].is_broken {
            // The other end has its own time.
        } else {
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            self.see_down(index, !is_source, delay);
        }
        if self.is_alive(worker, life) {
            self.clock
                .say(|| format!("w{worker}      sees link {index} down"));
            self.tell(worker, Event::LinkDown(link));
        }
    }

    /// A message of the source is at the destination.
    pub(crate) fn forward(&mut self, index: usize) {
        let now = self.clock.now();
        let conn = &mut self.conns[index];
        let message = match conn.forward.pop(now) {
            Arrival::Message(message) => message,
            Arrival::Later(at) => return self.clock.at(at, Ev::Forward(index)),
            Arrival::Nothing => return,
        };
        let (from, from_life, to, to_life) = (conn.from, conn.from_life, conn.to, conn.to_life);
        let (out, is_source_up) = (conn.out, conn.source == Side::Up);
        let bytes = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
        if conn.target == Side::Up && self.is_alive(to, to_life) {
            let fenced = self.processes[to].seats.pool().fenced();
            self.counts.late_writes += u64::from(bytes > 0 && fenced > 0);
            self.clock
                .say(|| format!("w{to}      <- link {index} {}", crate::show::link(&message)));
            self.tell(to, Event::Frame(LinkId::In(index as u64), message));
        }
        if bytes > 0 && is_source_up && self.is_alive(from, from_life) {
            // A stopped process takes note when it goes on: the table may not hear of it now.
            if self.processes[from].frozen <= now {
                self.tell(from, Event::Drained(out, bytes));
            } else {
                self.processes[from].drained.push((out, bytes));
            }
        }
    }

    /// A message of the destination is at the source.
    pub(crate) fn backward(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let message = match conn.backward.pop(self.clock.now()) {
            Arrival::Message(message) => message,
            Arrival::Later(at) => return self.clock.at(at, Ev::Backward(index)),
            Arrival::Nothing => return,
        };
        let (from, life, out) = (conn.from, conn.from_life, conn.out);
        if conn.source == Side::Up && self.is_alive(from, life) {
            self.clock.say(|| {
                format!(
                    "w{from}      <- link {index} {}",
                    crate::show::link(&message)
                )
            });
            self.tell(from, Event::Frame(LinkId::Out(out), message));
        }
    }

    /// The links of a process that is gone: its ends are down at once, the others see it, or never.
    pub(crate) fn end_links(&mut self, worker: usize, life: u32, is_quiet: bool) {
        for index in 0..self.conns.len() {
            let conn = &mut self.conns[index];
            let is_from = conn.from == worker && conn.from_life == life;
            let is_to = conn.to == worker && conn.to_life == life;
            if conn.is_over() || !(is_from || is_to) {
                continue;
            }
            if is_from {
                conn.source = Side::Down;
            } else {
                conn.target = Side::Down;
            }
            let was_broken = conn.is_broken;
            conn.is_broken |= is_quiet;
            if !is_quiet && !was_broken {
                let delay = self.clock.random.delay_us(self.plan.delay_us);
                self.see_down(index, !is_from, delay);
            }
        }
    }
}
