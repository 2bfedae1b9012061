//! One mock worker: drives the seat table between its session, its data links and the clock.
//!
//! A single task owns everything, so there is no lock. Inputs come through one bounded inbox; a
//! step is a sleep, at whose end the table computes. If the report queue is full the worker makes
//! no further step: a slow router slows it, nothing piles up.

mod config;
mod input;
mod output;
mod stepping;

use std::{collections::HashMap, time::Duration};

use dopd_core::units::Micros;
use dopd_router::wire::worker::{AttachRequest, Hello};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

pub(crate) use config::IN_FLIGHT_BYTES_MAX;
pub use config::{WorkerConfig, WorkerError};
pub use input::{Input, LinkSender, Session};

use crate::{
    attach::{self, Target},
    link::{self, Identity},
    model,
    seats::{Batch, Event, LinkId, Seats},
};

/// Inputs that wait for the worker.
const INBOX_MAX: usize = 1_024;
/// Inputs taken between two looks at the clock.
const INPUTS_PER_TURN: usize = 256;
/// Time for residents to end after a drain without a router.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for the router to take the last report.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Sleep without a reason to wake.
const IDLE: Duration = Duration::from_secs(60);

/// Whether workers go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Run.
    Run,
    /// Take nothing new, end when empty.
    Drain,
    /// End at once.
    Stop,
}

/// A step under way.
#[derive(Debug)]
struct Step {
    batch: Batch,
    begun: Instant,
    ends: Instant,
}

/// Everything of one worker.
#[derive(Debug)]
struct Worker {
    config: WorkerConfig,
    seats: Seats,
    identity: Identity,
    started: Instant,
    inbox: mpsc::Receiver<Input>,
    /// For tasks that are started later.
    inbox_sender: mpsc::Sender<Input>,
    hello: watch::Sender<Hello>,
    session: Option<Session>,
    links: HashMap<LinkId, LinkSender>,
    tasks: JoinSet<()>,
    step: Option<Step>,
    /// End of the step just finished; taken when the next one begins at once.
    last_end: Option<Instant>,
    reported: Instant,
    /// When the router was heard last.
    heard: Instant,
    refused: Option<String>,
    drain_ends: Option<Instant>,
}

/// Runs one worker until it is told to end, drained or refused for good.
pub async fn run(config: WorkerConfig, wish: watch::Receiver<Wish>) -> Result<(), WorkerError> {
    let worker = Worker::start(config).await?;
    worker.serve(wish).await
}

impl Worker {
    async fn start(config: WorkerConfig) -> Result<Self, WorkerError> {
        let failed = |why: String| WorkerError::Start {
            worker: config.name.clone(),
            why,
        };
        let random = || getrandom::u64().map_err(|error| failed(format!("no entropy: {error}")));
        let (incarnation, nonce_seed) = (random()?, random()?);
        let address = format!("{}:0", config.data_host);
        let listener = TcpListener::bind(&address)
            .await
            .map_err(|error| failed(format!("data link on {address}: {error}")))?;
        let data_address = listener
            .local_addr()
            .map_err(|error| failed(format!("data link on {address}: {error}")))?
            .to_string();
        let identity = Identity {
            worker: config.name.clone(),
            incarnation,
            layout_hash: model::layout_hash(&model::geometry()),
            join_token: config.join_token.clone(),
        };
        let seats = Seats::new(config::seats_config(
            &config,
            &identity,
            &data_address,
            nonce_seed,
        ));
        let (hello, hello_receiver) =
            watch::channel(config::hello(&config, incarnation, data_address));
        let (inbox_sender, inbox) = mpsc::channel(INBOX_MAX);
        let target = Target {
            join: config.join.clone(),
            join_token: config.join_token.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(attach::attach(target, hello_receiver, inbox_sender.clone()));
        tasks.spawn(link::listen(
            listener,
            identity.clone(),
            inbox_sender.clone(),
        ));
        let now = Instant::now();
        Ok(Self {
            config,
            seats,
            identity,
            started: now,
            inbox,
            inbox_sender,
            hello,
            session: None,
            links: HashMap::new(),
            tasks,
            step: None,
            last_end: None,
            reported: now,
            heard: now,
            refused: None,
            drain_ends: None,
        })
    }

    /// The loop: do what the table asks, step, report; then wait for whatever comes first.
    async fn serve(mut self, mut wish: watch::Receiver<Wish>) -> Result<(), WorkerError> {
        let mut inputs = Vec::with_capacity(INPUTS_PER_TURN);
        loop {
            let has_room = self.turn();
            if let Some(why) = self.refused.take() {
                let worker = self.config.name;
                return Err(WorkerError::Refused { worker, why });
            }
            if self.is_done() {
                self.leave().await;
                return Ok(());
            }
            if self
                .step
                .as_ref()
                .is_some_and(|step| step.ends <= Instant::now())
            {
                // Lets sockets move between two steps, however short.
                tokio::task::yield_now().await;
                while inputs.len() < INPUTS_PER_TURN
                    && let Ok(input) = self.inbox.try_recv()
                {
                    inputs.push(input);
                }
                self.take(&mut inputs);
                self.finish_step();
                continue;
            }
            let wake = self.next_wake(has_room);
            let reports = self.session.as_ref().map(Session::reports);
            tokio::select! {
                _ = self.inbox.recv_many(&mut inputs, INPUTS_PER_TURN) => self.take(&mut inputs),
                () = tokio::time::sleep_until(wake) => {
                    let now = self.now();
                    self.seats.handle(now, Event::Tick);
                }
                () = room(reports), if !has_room => {}
                Some(_) = self.tasks.join_next() => {}
                changed = wish.changed() => {
                    let wish = *wish.borrow_and_update();
                    if changed.is_err() || wish == Wish::Stop {
                        return Ok(());
                    }
                    self.wish(wish);
                }
            }
        }
    }

    /// Everything that can be done now. Returns whether the session has room for a report; without
    /// room no step begins, so that a slow router slows the worker and nothing piles up.
    fn turn(&mut self) -> bool {
        self.perform();
        let has_room = self.session.as_ref().is_none_or(Session::has_room);
        if has_room {
            if self.step.is_none() {
                self.begin_step();
                self.perform();
            }
            self.report();
        }
        has_room
    }

    /// Ends the stream so that the last report arrives.
    async fn leave(mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let _cut_when_dropped = session.bow();
        let router_ends = async {
            while let Some(input) = self.inbox.recv().await {
                if matches!(input, Input::SessionLost) {
                    return;
                }
            }
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, router_ends)
            .await
            .is_err()
        {
            tracing::debug!("the router did not end the stream within {LEAVE_TIMEOUT:?}");
        }
    }

    fn now(&self) -> Micros {
        let elapsed = self.started.elapsed().as_micros();
        Micros(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn wish(&mut self, wish: Wish) {
        if wish == Wish::Drain && self.drain_ends.is_none() {
            self.drain_ends = Some(Instant::now() + DRAIN_TIMEOUT);
            let now = self.now();
            self.seats.handle(now, Event::Drain);
        }
    }

    /// Drained and empty, or out of time.
    fn is_done(&self) -> bool {
        let is_over = self.drain_ends.is_some_and(|end| end <= Instant::now());
        // Without a session there is nobody to report to.
        let is_told = self.session.is_none() || !self.seats.is_dirty();
        is_over || (self.seats.label().drain && self.seats.live() == 0 && is_told)
    }

    fn take(&mut self, inputs: &mut Vec<Input>) {
        let now = self.now();
        for input in inputs.drain(..) {
            self.input(now, input);
        }
        self.remember_label();
    }

    fn input(&mut self, now: Micros, input: Input) {
        let event = match input {
            Input::SessionUp(session) => {
                let terms = session.terms;
                let id = terms.session;
                self.heard = Instant::now();
                tracing::info!(worker = self.config.name, session = id, "attached");
                self.session = Some(session);
                Event::SessionUp(terms)
            }
            Input::SessionLost => {
                self.session = None;
                Event::SessionLost
            }
            Input::Refused(why) => {
                self.refused = Some(why);
                return;
            }
            Input::Cmd(cmd) => {
                self.heard = Instant::now();
                for command in cmd.commands {
                    self.seats.handle(now, Event::Command(cmd.session, command));
                }
                return;
            }
            Input::LinkUp(id, sender) => {
                self.links.insert(id, sender);
                match id {
                    LinkId::In(link) => Event::Accepted(link),
                    LinkId::Out(link) => Event::LinkUp(link),
                }
            }
            Input::LinkDown(id) => {
                self.links.remove(&id);
                Event::LinkDown(id)
            }
            Input::Frame(id, message) => Event::Frame(id, message),
            Input::Drained(link, bytes) => Event::Drained(link, bytes),
        };
        self.seats.handle(now, event);
    }

    /// Fences, heartbeat, end of step.
    fn next_wake(&self, has_room: bool) -> Instant {
        let mut wake = Instant::now() + IDLE;
        if let Some(step) = &self.step {
            wake = wake.min(step.ends);
        }
        if let Some(fence) = self.seats.next_wake() {
            wake = wake.min(self.started + Duration::from_micros(fence.0));
        }
        if let (Some(session), true) = (&self.session, has_room) {
            wake = wake.min(self.reported + session.interval);
        }
        if let Some(end) = self.drain_ends {
            wake = wake.min(end);
        }
        wake
    }

    /// A session to come must know the label that the last one gave.
    fn remember_label(&mut self) {
        let label = self.seats.label();
        self.hello.send_if_modified(|hello| {
            let is_new = hello.role_epoch != label.epoch;
            hello.role_epoch = label.epoch;
            hello.set_role(label.role);
            is_new
        });
    }
}

/// Waits until a report fits into the queue, or for ever without one.
async fn room(reports: Option<mpsc::Sender<AttachRequest>>) {
    match reports {
        // Closed counts as room: the loop finds out by itself that the session is lost.
        Some(reports) => drop(reports.reserve().await),
        None => std::future::pending().await,
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
