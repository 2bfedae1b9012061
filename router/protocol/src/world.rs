//! Everything of one simulation, and what each event does to it. Parts: `session` streams between
//! router and workers, `worker` their processes, `link` the data links, `fault` what goes wrong,
//! `verdict` what must hold.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use dopd_core::{ids::SequenceId, units::Micros};
use dopd_router::metrics::Metrics;

use crate::{
    client::{Board, Client, State},
    clock::{Clock, Ev},
    link::Conn,
    plan::{Fault, Plan},
    process::Process,
    router::Router,
    session::Stream,
    verdict::Counts,
};

/// Events of one seed; more are a livelock.
const EVENTS_MAX: u64 = 2_000_000;
/// Time between two looks at bounds.
const CHECK_US: u64 = 250_000;

/// One simulation.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) router: Router,
    /// No router listens before.
    pub(crate) router_up: Micros,
    pub(crate) processes: Vec<Process>,
    pub(crate) streams: Vec<Stream>,
    /// Streams whose router end is open.
    pub(crate) attached: Vec<usize>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) clients: Vec<Client>,
    pub(crate) board: Arc<Board>,
    /// Those of the plan, and those that found their hand-off.
    pub(crate) faults: Vec<(Fault, bool)>,
    /// Faults that wait for a message on a link.
    pub(crate) armed: VecDeque<Fault>,
    /// Prompts by their hash: what a seat's pages must hold.
    pub(crate) prompts: BTreeMap<u64, Arc<[u32]>>,
    /// Uses of each grant.
    pub(crate) uses: BTreeMap<u64, u32>,
    pub(crate) counts: Counts,
    /// Since when all answers are over.
    pub(crate) over: Option<Micros>,
    pub(crate) is_done: bool,
}

/// Whose thread an event needs.
enum Needs {
    Worker(usize),
    Router,
    Nobody,
}

impl World {
    pub(crate) fn new(plan: Plan, metrics: &Metrics, is_traced: bool) -> Self {
        let mut clock = Clock::new(plan.seed, is_traced);
        let router = Router::new(&plan, metrics, 0, Micros(0));
        let processes: Vec<Process> = (0..plan.roles.len())
            .map(|index| Process::new(&plan, index))
            .collect();
        let clients: Vec<Client> = plan.asks.iter().cloned().map(Client::new).collect();
        let faults = plan.faults.iter().map(|&(_, fault, waits)| (fault, waits));
        let faults = faults.collect();
        let prompts = clients.iter().map(Client::prompt).collect();
        let board = Arc::new(Board::default());
        let open: usize = clients.iter().map(|client| client.answers.len()).sum();
        board.open.store(open, Ordering::Relaxed);
        for (index, client) in clients.iter().enumerate() {
            clock.at(client.ask.at, Ev::Submit(index));
            if let Some(at) = client.ask.cancel {
                clock.at(at, Ev::Cancel(index));
            }
            for at in client.ask.moves.clone() {
                clock.at(at, Ev::Move(index));
            }
        }
        for (index, &(at, ..)) in plan.faults.iter().enumerate() {
            clock.at(at, Ev::Fault(index));
        }
        for worker in 0..processes.len() {
            let delay = clock.random.between(0, 20_000);
            clock.after(delay, Ev::Dial(worker, 0));
            clock.after(delay, Ev::Poll(worker, 0));
        }
        clock.after(CHECK_US, Ev::Check);
        Self {
            plan,
            clock,
            metrics: metrics.clone(),
            router,
            router_up: Micros(0),
            processes,
            streams: Vec::new(),
            attached: Vec::new(),
            conns: Vec::new(),
            clients,
            board,
            armed: VecDeque::new(),
            faults,
            prompts,
            uses: BTreeMap::new(),
            counts: Counts::default(),
            over: None,
            is_done: false,
        }
    }

    /// Runs to the end, or to the first thing that must not be.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(event) = self.clock.next() {
            self.counts.events += 1;
            self.take(event);
            if let Some(alarm) = self.board.take_alarm() {
                self.clock.broken(alarm);
            }
            if self.counts.events > EVENTS_MAX {
                self.clock
                    .broken(format!("no end after {EVENTS_MAX} events"));
            }
            if self.clock.is_broken() || self.is_done {
                break;
            }
        }
        self.clock.verdict().map_or(Ok(()), Err)
    }

    /// One event, if whoever it needs can run now.
    fn take(&mut self, event: Ev) {
        let now = self.clock.now();
        let until = match self.needs(event) {
            Needs::Worker(worker) => self.processes[worker].frozen,
            Needs::Router => self.router.stalled,
            Needs::Nobody => Micros(0),
        };
        if until > now {
            let late = self.clock.random.between(0, 2_000);
            return self.clock.at(until.plus(Micros(late)), event);
        }
        let is_router = matches!(self.needs(event), Needs::Router);
        self.handle(event);
        if is_router {
            self.settle_router();
        }
    }

    fn needs(&self, event: Ev) -> Needs {
        match event {
            Ev::Submit(_)
            | Ev::Cancel(_)
            | Ev::Move(_)
            | Ev::Brain(_)
            | Ev::Front(..)
            | Ev::Wake(_)
            | Ev::Tick(_)
            | Ev::Beat(_)
            | Ev::Up(_)
            | Ev::RouterSees(_) => Needs::Router,
            Ev::Down(stream) | Ev::WorkerSees(stream) => {
                let stream = &self.streams[stream];
                self.alive(stream.worker, stream.life)
            }
            Ev::Dial(worker, life)
            | Ev::StepEnd(worker, life, _)
            | Ev::Poll(worker, life)
            | Ev::Fence(worker, life) => self.alive(worker, life),
            Ev::LinkUp(conn) | Ev::Backward(conn) | Ev::LinkDown(conn, true) => {
                let conn = &self.conns[conn];
                self.alive(conn.from, conn.from_life)
            }
            Ev::Forward(conn) | Ev::LinkDown(conn, false) => {
                let conn = &self.conns[conn];
                self.alive(conn.to, conn.to_life)
            }
            Ev::Accept(_) | Ev::Fault(_) | Ev::Restart(..) | Ev::Check => Needs::Nobody,
        }
    }

    /// What concerns a process that is gone does not wait for the one after it.
    fn alive(&self, worker: usize, life: u32) -> Needs {
        if self.is_alive(worker, life) {
            Needs::Worker(worker)
        } else {
            Needs::Nobody
        }
    }

    pub(crate) fn is_alive(&self, worker: usize, life: u32) -> bool {
        let process = &self.processes[worker];
        process.is_up && process.life == life
    }

    fn handle(&mut self, event: Ev) {
        match event {
            Ev::Submit(client) => self.submit(client),
            Ev::Cancel(client) => self.cancel(client),
            Ev::Move(client) => self.move_on(client),
            Ev::Brain(epoch) if epoch == self.router.epoch => {
                self.router.run_brain(&mut self.clock);
            }
            Ev::Front(epoch, front) if epoch == self.router.epoch => {
                self.router.run_front(&mut self.clock, front);
            }
            Ev::Wake(epoch) if epoch == self.router.epoch => {
                let event = dopd_core::event::Event::Woke;
                self.router.event(&mut self.clock, event);
            }
            Ev::Brain(_) | Ev::Front(..) | Ev::Wake(_) => {}
            Ev::Tick(stream) => self.tick(stream),
            Ev::Beat(stream) => self.beat(stream),
            Ev::Up(stream) => self.up(stream),
            Ev::Down(stream) => self.down(stream),
            Ev::RouterSees(stream) => self.router_sees(stream, "its stream ended"),
            Ev::WorkerSees(stream) => self.worker_sees(stream),
            Ev::Dial(worker, life) => self.dial_router(worker, life),
            Ev::StepEnd(worker, life, number) => self.step_end(worker, life, number),
            Ev::Poll(worker, life) => self.poll(worker, life),
            Ev::Fence(worker, life) => self.fence_poll(worker, life),
            Ev::Accept(conn) => self.accept(conn),
            Ev::LinkUp(conn) => self.link_up(conn),
            Ev::Forward(conn) => self.forward(conn),
            Ev::Backward(conn) => self.backward(conn),
            Ev::LinkDown(conn, is_source) => self.link_down(conn, is_source),
            Ev::Fault(fault) => self.fault(fault),
            Ev::Restart(worker, life) => self.restart(worker, life),
            Ev::Check => {
                self.check();
                self.clock.after(CHECK_US, Ev::Check);
            }
        }
    }

    fn submit(&mut self, index: usize) {
        let now = self.clock.now();
        if self.clients[index]
            .states()
            .all(|state| state != State::Open)
        {
            // It went away before the router got to it.
            return;
        }
        if now < self.router_up {
            // Nobody listens: the client is told so by its system.
            return self.clients[index].leave(State::Cut, now, &self.board);
        }
        let front = self.clock.random.index(self.router.fronts.len());
        let id = self.router.mint(u16::try_from(front).unwrap_or(0));
        let ask = &self.clients[index].ask;
        let deadline = self.router.time(now).plus(ask.patience);
        self.clock.say(|| {
            format!(
                "client  r{index} asks as {id:?}: prompt {}, {} tokens at most, {} choices",
                ask.prompt, ask.max_tokens, ask.choices
            )
        });
        let bound = self.bound(deadline);
        let client = &mut self.clients[index];
        client.bound = bound;
        let shared = self.clock.shared();
        let front = &self.router.fronts[front];
        client.submit(front, id, deadline, (index, &self.board, &shared));
    }

    fn cancel(&mut self, index: usize) {
        let now = self.clock.now();
        let client = &self.clients[index];
        let Some((front, _, keys)) = &client.place else {
            return client.leave(State::Cancelled, now, &self.board);
        };
        self.clock.say(|| format!("client  r{index} goes away"));
        self.router.fronts[usize::from(*front)].cancel(keys);
        client.leave(State::Cancelled, now, &self.board);
    }

    /// One choice of the request is to go on at another worker.
    fn move_on(&mut self, index: usize) {
        let Some((_, request, _)) = self.clients[index].place else {
            return;
        };
        let choice = self.clock.random.index(self.clients[index].answers.len());
        let sequence = SequenceId {
            request,
            choice: u8::try_from(choice).unwrap_or(0),
        };
        if self.attached.is_empty() {
            return;
        }
        let pick = self.clock.random.index(self.attached.len());
        let to = self.attached[pick];
        if let Some(session) = self.streams[to].session() {
            self.router.move_to(&mut self.clock, sequence, session);
        }
    }
}
