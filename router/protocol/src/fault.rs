//! What goes wrong, as the plan says.

use bytes::Bytes;
use dopd_core::units::Micros;
use dopd_mock::seats::{Event, LinkMessage};
use dopd_router::wire::worker::{SetRole, attach_request, command, link_frame::Kind};

use crate::{
    client::State,
    clock::Ev,
    link::Side,
    plan::{FAULTS_END, Fault},
    router::Router,
    world::World,
};

/// A router that restarts listens again after at most so many milliseconds.
const ROUTER_DOWN_MS_MAX: u64 = 600;
/// A fault that waits for a message on a link takes one in so many, in percent.
const BEFALL_PERCENT: u64 = 30;

impl World {
    /// The fault with this number happens.
    pub(crate) fn fault(&mut self, index: usize) {
        let (fault, waits) = self.faults[index];
        if waits && fault.at(0).is_some() {
            return self.armed.push_back(fault);
        }
        self.clock.say(|| format!("FAULT   {fault:?}"));
        let now = self.clock.now();
        match fault {
            Fault::Crash {
                worker,
                down,
                is_quiet,
            } => self.crash(worker, down, is_quiet),
            Fault::Freeze { worker, time } => {
                let process = &mut self.processes[worker];
                process.frozen = process.frozen.max(now.plus(time));
            }
            Fault::Stick { worker, time } => {
                let process = &mut self.processes[worker];
                process.stuck = process.stuck.max(now.plus(time));
            }
            Fault::BreakStream {
                worker,
                router_sees,
                worker_sees,
            } => self.break_stream(worker, router_sees, worker_sees),
            Fault::HoldStream { worker, ways, time } => {
                if let Some(index) = self.processes[worker].stream {
                    let until = now.plus(time);
                    let stream = &mut self.streams[index];
                    if ways & 1 != 0 {
                        stream.up.hold(until);
                    }
                    if ways & 2 != 0 {
                        stream.down.hold(until);
                    }
                }
            }
            Fault::BreakLink { .. }
            | Fault::HoldLink { .. }
            | Fault::Tamper { .. }
            | Fault::Flip { .. } => self.armed.push_back(fault),
            Fault::Preempt { worker, pick } => self.preempt(worker, pick),
            Fault::Drain { worker } => self.wish(worker, Event::Drain),
            Fault::Role { worker, role } => self.set_role(worker, role),
            Fault::RestartRouter => self.restart_router(),
            Fault::StallRouter { time } => {
                self.router.stalled = self.router.stalled.max(now.plus(time));
            }
            Fault::OldReport { worker } => self.processes[worker].wants_old.0 = true,
            Fault::OldCommand { worker } => self.processes[worker].wants_old.1 = true,
        }
    }

    fn crash(&mut self, worker: usize, down: Micros, is_quiet: bool) {
        if !self.processes[worker].is_up {
            return;
        }
        if let Some(index) = self.processes[worker].stream.filter(|_| is_quiet) {
            let keep = self.clock.random.index(3);
            self.streams[index].up.cut(keep);
        }
        self.end_process(worker, is_quiet);
        let life = self.processes[worker].life;
        self.clock.after(down.0, Ev::Restart(worker, life));
    }

    fn break_stream(&mut self, worker: usize, router_sees: Micros, worker_sees: Micros) {
        let Some(index) = self.processes[worker].stream else {
            return;
        };
        let (up, down) = (self.clock.random.index(6), self.clock.random.index(6));
        let stream = &mut self.streams[index];
        if stream.is_broken {
            return;
        }
        stream.is_broken = true;
        stream.up.cut(up);
        stream.down.cut(down);
        self.clock.after(router_sees.0, Ev::RouterSees(index));
        self.clock.after(worker_sees.0, Ev::WorkerSees(index));
    }

    fn preempt(&mut self, worker: usize, pick: u64) {
        let live: Vec<u32> = (0..64)
            .filter(|&slot| self.processes[worker].seats.seat(slot).is_some())
            .collect();
        let chosen = usize::try_from(pick % live.len().max(1) as u64).unwrap_or(0);
        if let Some(&slot) = live.get(chosen) {
            self.wish(worker, Event::Preempt(slot));
        }
    }

    /// Tells a table what no message tells it.
    fn wish(&mut self, worker: usize, event: Event) {
        let process = &mut self.processes[worker];
        if process.is_up && process.frozen <= self.clock.now() {
            let time = process.time(self.clock.now());
            process.seats.handle(time, event);
            self.settle_worker(worker);
        }
    }

    fn set_role(&mut self, worker: usize, role: dopd_router::wire::worker::Role) {
        let Some(index) = self.processes[worker].stream else {
            return;
        };
        // Sometimes one that is over already.
        let epoch = self.processes[worker].seats.label().epoch + self.clock.random.between(0, 3);
        let epoch = epoch.saturating_sub(1);
        let mut order = SetRole {
            epoch,
            ..SetRole::default()
        };
        order.set_role(role);
        if let Some(attachment) = &self.streams[index].attachment {
            attachment.push(command::Kind::SetRole(order));
        }
        self.settle_router();
    }

    fn restart_router(&mut self) {
        let now = self.clock.now();
        for index in self.attached.clone() {
            self.router_sees(index, "the router's process ended");
        }
        for client in &self.clients {
            if client.place.is_some() {
                client.leave(State::Cut, now, &self.board);
            }
        }
        for client in &mut self.clients {
            client.place = None;
        }
        let epoch = self.router.epoch + 1;
        self.router = Router::new(&self.plan, &self.metrics, epoch, now);
        let down = self.clock.random.between(1, ROUTER_DOWN_MS_MAX);
        self.router_up = now.plus(Micros::from_millis(down));
    }

    /// What was said under the session before is said again under this one.
    pub(crate) fn old_messages(&mut self, worker: usize, index: usize) {
        let process = &mut self.processes[worker];
        let session = process.seats.session();
        let is_old = |other: u64| session.is_some_and(|session| session != other);
        let (wants_report, wants_command) = process.wants_old;
        let report = process
            .old_report
            .clone()
            .filter(|report| wants_report && is_old(report.session));
        let command = process
            .old_command
            .clone()
            .filter(|(session, _)| wants_command && is_old(*session));
        if let Some(report) = report {
            process.wants_old.0 = false;
            self.counts.old_messages += 1;
            self.clock
                .say(|| format!("FAULT   w{worker} says an old report again"));
            self.send_report(index, attach_request::Kind::Report(report));
        }
        if let Some((session, command)) = command {
            self.processes[worker].wants_old.1 = false;
            self.counts.old_messages += 1;
            self.clock
                .say(|| format!("FAULT   w{worker} hears an old command again: {command:?}"));
            let time = self.processes[worker].time(self.clock.now());
            self.processes[worker]
                .seats
                .handle(time, Event::Command(session, command));
        }
    }

    /// A message is said on a link: what waits for one may befall it. Returns how often it goes
    /// out.
    pub(crate) fn befall(&mut self, index: usize, message: &mut LinkMessage) -> usize {
        let now = self.clock.now();
        if now > FAULTS_END {
            self.armed.clear();
        }
        let is_write = matches!(message.kind, Kind::Write(_));
        let Some(&fault) = self.armed.front() else {
            return 1;
        };
        let fits = match fault {
            Fault::Flip { .. } => is_write,
            Fault::Tamper { .. } => !is_write,
            _ => true,
        };
        if !fits || !self.clock.random.percent(BEFALL_PERCENT) {
            return 1;
        }
        self.armed.pop_front();
        self.clock
            .say(|| format!("FAULT   on link {index}: {fault:?}"));
        match fault {
            Fault::Flip { pick } => {
                message.payload = flipped(&message.payload, pick);
                self.counts.flips += 1;
            }
            Fault::Tamper { is_doubled, .. } => return if is_doubled { 2 } else { 0 },
            Fault::BreakLink {
                source_sees,
                target_sees,
                ..
            } => self.break_link(index, source_sees, target_sees),
            Fault::HoldLink { ways, time, .. } => {
                let conn = &mut self.conns[index];
                if ways & 1 != 0 {
                    conn.forward.hold(now.plus(time));
                }
                if ways & 2 != 0 {
                    conn.backward.hold(now.plus(time));
                }
            }
            fault => self.ambush(index, fault),
        }
        1
    }

    /// A fault of a worker found its hand-off: it befalls one of the two, now or a little later.
    fn ambush(&mut self, conn: usize, fault: Fault) {
        let conn = &self.conns[conn];
        let pair = [conn.from, conn.to];
        let worker = pair[self.clock.random.index(2)];
        if let Some(fault) = fault.at(worker) {
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            self.clock.after(delay, Ev::Fault(self.faults.len()));
            self.faults.push((fault, false));
        }
    }

    fn break_link(&mut self, index: usize, source_sees: Micros, target_sees: Micros) {
        let (forward, backward) = (self.clock.random.index(6), self.clock.random.index(6));
        let conn = &mut self.conns[index];
        if conn.is_broken || conn.source == Side::Down {
            return;
        }
        conn.is_broken = true;
        conn.forward.cut(forward);
        conn.backward.cut(backward);
        self.clock.after(source_sees.0, Ev::LinkDown(index, true));
        self.clock.after(target_sees.0, Ev::LinkDown(index, false));
    }
}

/// The bytes with one bit turned.
fn flipped(bytes: &Bytes, pick: u64) -> Bytes {
    let mut bytes = bytes.to_vec();
    let bits = (bytes.len() as u64 * 8).max(1);
    let bit = pick % bits;
    if let Some(byte) = usize::try_from(bit / 8)
        .ok()
        .and_then(|at| bytes.get_mut(at))
    {
        *byte ^= 1 << (bit % 8);
    }
    bytes.into()
}
