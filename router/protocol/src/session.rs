//! Streams between router and workers: messages in order, ends that are seen late or never.

use dopd_core::{ids::SessionId, units::Micros};
use dopd_mock::{backoff, model, seats::Event};
use dopd_router::{
    wire::worker::{Open, attach_request, attach_response, command, open},
    workers::sim::Attachment,
};

use crate::{
    clock::Ev,
    pipe::{Arrival, Pipe},
    process::{INTERVAL, REPORTS_MAX},
    world::World,
};

/// Time between two commands at most.
const BEAT: Micros = Micros::from_millis(500);

/// One stream.
pub(crate) struct Stream {
    pub(crate) worker: usize,
    pub(crate) life: u32,
    /// The router's end.
    pub(crate) attachment: Option<Attachment>,
    /// The worker's end is open.
    pub(crate) is_open: bool,
    /// What is said from now on is lost.
    pub(crate) is_broken: bool,
    pub(crate) up: Pipe<attach_request::Kind>,
    pub(crate) down: Pipe<attach_response::Kind>,
    /// When the router said something last.
    said: Micros,
}

impl Stream {
    pub(crate) fn session(&self) -> Option<SessionId> {
        self.attachment.as_ref().map(Attachment::session)
    }
}

impl World {
    /// A worker dials; the router answers at once, the welcome takes its way.
    pub(crate) fn dial_router(&mut self, worker: usize, life: u32) {
        let now = self.clock.now();
        if !self.is_alive(worker, life) || self.processes[worker].stream.is_some() {
            return;
        }
        if now < self.router_up || self.router.stalled > now {
            return self.redial(worker);
        }
        let hello = self.processes[worker].hello(&self.plan, worker);
        let front = self.clock.random.index(self.router.fronts.len());
        let front = &self.router.fronts[front];
        let attachment = match Attachment::begin(&self.router.attachments, front, hello) {
            Ok(attachment) => attachment,
            Err(why) => return self.clock.broken(format!("w{worker} was refused: {why}")),
        };
        let index = self.streams.len();
        let session = attachment.session();
        self.clock
            .say(|| format!("stream  {index}: w{worker} attaches, {session:?}"));
        self.streams.push(Stream {
            worker,
            life,
            attachment: Some(attachment),
            is_open: true,
            is_broken: false,
            up: Pipe::default(),
            down: Pipe::default(),
            said: now,
        });
        self.attached.push(index);
        let process = &mut self.processes[worker];
        process.stream = Some(index);
        process.last_cmd = now;
        self.clock.after(INTERVAL.0, Ev::Tick(index));
        self.clock.after(BEAT.0, Ev::Beat(index));
        self.settle_router();
    }

    pub(crate) fn redial(&mut self, worker: usize) {
        let process = &mut self.processes[worker];
        process.tries = process.tries.saturating_add(1);
        let wait = backoff::wait(process.tries, self.clock.random.any());
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.clock.after(wait_us, Ev::Dial(worker, process.life));
    }

    /// After anything that the router did: what it says goes out, what it ends is seen.
    pub(crate) fn settle_router(&mut self) {
        for index in self.attached.clone() {
            let stream = &self.streams[index];
            if stream
                .attachment
                .as_ref()
                .is_some_and(Attachment::is_stopped)
            {
                self.router_sees(index, "the router ended it");
            } else {
                self.pump(index);
            }
        }
        self.router.settle(&mut self.clock);
    }

    /// Sends what the router has to say on a stream.
    fn pump(&mut self, index: usize) {
        let now = self.clock.now();
        let stream = &mut self.streams[index];
        while let Some(kind) = stream.attachment.as_ref().and_then(Attachment::next) {
            stream.said = now;
            if stream.is_broken {
                continue;
            }
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            let at = stream.down.push(now, delay, kind);
            self.clock.at(at, Ev::Down(index));
        }
    }

    /// A report interval passed at the router.
    pub(crate) fn tick(&mut self, index: usize) {
        let Some(attachment) = &mut self.streams[index].attachment else {
            return;
        };
        if let Err(why) = attachment.tick() {
            self.counts.leases_over += 1;
            return self.router_sees(index, &why);
        }
        let rate = self.plan.rates[0].max(1);
        self.clock.after(INTERVAL.0 * 1_000 / rate, Ev::Tick(index));
    }

    /// An empty Cmd, if nothing was said for long.
    pub(crate) fn beat(&mut self, index: usize) {
        let now = self.clock.now();
        let stream = &mut self.streams[index];
        let Some(session) = stream.session() else {
            return;
        };
        self.clock.after(BEAT.0, Ev::Beat(index));
        if now.since(stream.said) >= BEAT && !stream.is_broken {
            stream.said = now;
            let cmd = dopd_router::wire::worker::Cmd {
                session: session.0,
                commands: Vec::new(),
            };
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            let at = stream
                .down
                .push(now, delay, attach_response::Kind::Cmd(cmd));
            self.clock.at(at, Ev::Down(index));
        }
    }

    /// A message of the worker is at the router.
    pub(crate) fn up(&mut self, index: usize) {
        let now = self.clock.now();
        let stream = &mut self.streams[index];
        let (worker, life) = (stream.worker, stream.life);
        let was_full = stream.up.len() >= REPORTS_MAX;
        let kind = match stream.up.pop(now) {
            Arrival::Message(kind) => kind,
            Arrival::Later(at) => return self.clock.at(at, Ev::Up(index)),
            Arrival::Nothing => return,
        };
        if let Some(attachment) = &mut stream.attachment {
            self.clock
                .say(|| format!("router  <- w{worker} {}", crate::show::up(&kind)));
            if let Err(why) = attachment.message(kind) {
                self.clock.broken(format!("w{worker}: {why}"));
            } else if attachment.spoiled() > 0 {
                self.clock
                    .broken(format!("w{worker} said of a seat what cannot be"));
            }
        }
        if was_full && self.is_alive(worker, life) && self.processes[worker].frozen <= now {
            self.settle_worker(worker);
        }
    }

    /// A message of the router is at the worker.
    pub(crate) fn down(&mut self, index: usize) {
        let now = self.clock.now();
        let stream = &mut self.streams[index];
        let worker = stream.worker;
        let kind = match stream.down.pop(now) {
            Arrival::Message(kind) => kind,
            Arrival::Later(at) => return self.clock.at(at, Ev::Down(index)),
            Arrival::Nothing => return,
        };
        if !stream.is_open {
            return;
        }
        self.clock
            .say(|| format!("w{worker}      <- {}", crate::show::down(&kind)));
        let process = &mut self.processes[worker];
        process.last_cmd = now;
        let time = process.time(now);
        match kind {
            attach_response::Kind::Welcome(welcome) => {
                process.tries = 0;
                process.old_report = process.said.take();
                process.old_command = process.heard.take();
                process
                    .seats
                    .handle(time, crate::worker::session_up(&welcome));
            }
            attach_response::Kind::Refusal(refusal) => {
                self.clock
                    .broken(format!("w{worker} was refused: {}", refusal.message));
            }
            attach_response::Kind::Cmd(cmd) => {
                let has_news = !cmd.commands.is_empty();
                for mut command in cmd.commands {
                    if let Some(command::Kind::Open(open)) = &mut command.kind {
                        trim(open, self.plan.pages_spare);
                        process.heard = Some((cmd.session, command.clone()));
                    }
                    let event = Event::Command(cmd.session, command);
                    process.seats.handle(time, event);
                }
                if has_news && process.wants_old != (false, false) {
                    self.old_messages(worker, index);
                }
            }
        }
        self.settle_worker(worker);
    }

    /// The router's end is over: its links hear of it, the worker will.
    pub(crate) fn router_sees(&mut self, index: usize, why: &str) {
        let stream = &mut self.streams[index];
        let Some(attachment) = stream.attachment.take() else {
            return;
        };
        let worker = stream.worker;
        self.clock
            .say(|| format!("router  stream {index} of w{worker} is over: {why}"));
        self.attached.retain(|&other| other != index);
        drop(attachment);
        let stream = &self.streams[index];
        if stream.is_open && !stream.is_broken {
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            let at = self.clock.now().plus(Micros(delay));
            let at = at.max(stream.down.held_until());
            self.clock.at(at, Ev::WorkerSees(index));
        }
    }

    /// The worker's end is over: every seat is closed, and it dials again.
    pub(crate) fn worker_sees(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        let (worker, life) = (stream.worker, stream.life);
        if !std::mem::take(&mut stream.is_open) || !self.is_alive(worker, life) {
            return;
        }
        self.clock
            .say(|| format!("w{worker}      stream {index} is over"));
        self.hang_up(index);
        let process = &mut self.processes[worker];
        process.stream = None;
        let time = process.time(self.clock.now());
        process.seats.handle(time, Event::SessionLost);
        self.settle_worker(worker);
        self.redial(worker);
    }

    /// The router will see that the worker's end is closed, after what is under way.
    pub(crate) fn hang_up(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        stream.is_open = false;
        if !stream.is_broken {
            let delay = self.clock.random.delay_us(self.plan.delay_us);
            let last = stream.up.last();
            let at = self.clock.now().plus(Micros(delay));
            let at = at.max(last).max(stream.up.held_until());
            self.clock.at(at.plus(Micros(1)), Ev::RouterSees(index));
        }
    }
}

/// Leaves an Open the pages of what it holds at once and a few, so that its sequence must grow.
fn trim(open: &mut Open, pages_spare: Option<u32>) {
    let held = match &open.kind {
        Some(open::Kind::Compute(compute)) => compute.answer.len(),
        Some(open::Kind::Import(import)) => import.have.saturating_sub(1) as usize,
        None => 0,
    };
    if let Some(spare) = pages_spare {
        let tokens = open.prompt_tokens as usize + held;
        let held = u32::try_from(tokens.div_ceil(model::PAGE_SIZE as usize)).unwrap_or(u32::MAX);
        open.pages = open.pages.min(held.saturating_add(spare));
    }
}
