//! The brain's thread: inputs become events, actions become messages.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    thread,
};

use dopd_core::{
    action::{Action, OpenKind},
    brain::Brain,
    event::Event,
    ids::{SeatId, SequenceId, SessionId, SlotId},
    units::Micros,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    dispatch::{
        Dispatch, DispatchConfig, Shared, brain_config, owner,
        record::Recorder,
        reject::Bounds,
        status,
        tally::{Outcome, Tally},
        thread::BrainThread,
    },
    error::{Error, Reason},
    status::LinkStatus,
    streams::messages::{BrainInput, FrontMessage, Joined, Order, Reported, SeatOrder},
    wire::worker::Grant,
};

/// Inputs taken at once.
const BATCH: usize = 512;

/// Starts the thread.
pub(super) fn start(
    dispatch: &Dispatch,
    config: DispatchConfig,
    inputs: mpsc::Receiver<BrainInput>,
) -> Result<BrainThread, Error> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Error::new(Reason::Internal, format!("{what}: {error}"))
    };
    let seed = getrandom::u64().map_err(|e| failed("no random numbers from the system", &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|e| failed("starting the brain's runtime failed", &e))?;
    let brain_config = brain_config(&config, seed);
    let recorder = (config.record.as_deref())
        .map(|path| Recorder::open(path, config.record_bytes_max, &brain_config))
        .transpose()?;
    let driver = Driver {
        brain: Brain::new(brain_config),
        recorder,
        dispatch: dispatch.clone(),
        bounds: Bounds::new(config.limits, config.policy.late_max),
        sessions: HashMap::new(),
        handoffs: Tally::default(),
        is_draining: false,
    };
    let handle = thread::Builder::new()
        .name("brain".to_owned())
        .spawn(move || runtime.block_on(driver.run(inputs)))
        .map_err(|e| failed("starting the brain's thread failed", &e))?;
    Ok(BrainThread::new(handle))
}

/// What dispatch knows of an attached worker.
#[derive(Debug)]
pub(super) struct Session {
    /// Front thread that holds its link.
    home: u16,
    /// Its name, for the accounts of requests.
    name: Arc<str>,
    /// Its seats, from Open until `closed` was read.
    pub(super) seats: HashMap<SlotId, Seat>,
    /// Of its last report.
    step: Option<u64>,
    /// For the status page.
    pub(super) pid: u32,
    pub(super) device: String,
    pub(super) address: String,
    pub(super) links: Vec<LinkStatus>,
}

#[derive(Debug)]
pub(super) struct Seat {
    sequence: SequenceId,
    /// Of an import seat, from `opened` on.
    grant: Option<Grant>,
    /// An import seat that was not switched to.
    is_arriving: bool,
}

/// Without its brain the router can do nothing: whatever ends the thread ends the front loops, too,
/// and their streams fail instead of waiting for ever.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.is_ready.store(false, Ordering::Release);
        self.0.is_draining.store(true, Ordering::Release);
        self.0.stop.cancel();
    }
}

/// The brain with what it takes to carry out its actions.
pub(super) struct Driver {
    pub(super) brain: Brain,
    pub(super) recorder: Option<Recorder>,
    pub(super) dispatch: Dispatch,
    pub(super) bounds: Bounds,
    pub(super) sessions: HashMap<SessionId, Session>,
    pub(super) handoffs: Tally,
    pub(super) is_draining: bool,
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<BrainInput>) {
        let shared = Arc::clone(&self.dispatch.shared);
        let _ended = Ended(Arc::clone(&shared));
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake = self.brain.next_wake();
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => break,
                // Held open by `self.dispatch`.
                _ = inputs.recv_many(&mut batch, BATCH) => {}
                () = shared.drain.notified() => {}
                () = self.sleep_until(wake) => {}
            }
            if shared.is_draining.load(Ordering::Acquire) && !self.is_draining {
                self.is_draining = true;
                self.feed(self.now(), Event::DrainStarted).await;
            }
            for input in batch.drain(..) {
                self.input(self.now(), input).await;
                self.wake().await;
            }
            self.wake().await;
            if let Some(recorder) = &mut self.recorder {
                recorder.flush();
            }
            shared.set_ready(self.brain.is_ready());
        }
    }

    fn now(&self) -> Micros {
        self.dispatch.micros(Instant::now())
    }

    async fn sleep_until(&self, wake: Option<Micros>) {
        match wake.and_then(|wake| {
            let start = self.dispatch.shared.start;
            start.checked_add(std::time::Duration::from_micros(wake.0))
        }) {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// A part of what is due, between inputs: neither waits for all of the other.
    async fn wake(&mut self) {
        if (self.brain.next_wake()).is_some_and(|wake| wake <= self.now()) {
            self.feed(self.now(), Event::Woke).await;
        }
    }

    /// One message.
    pub(super) async fn input(&mut self, now: Micros, input: BrainInput) {
        let event = match input {
            BrainInput::Submitted(facts) => Event::RequestArrived(facts),
            BrainInput::Cancelled(request) => Event::RequestCancelled { request },
            BrainInput::Stopped(sequence) => Event::SequenceStopped { sequence },
            BrainInput::Joined(joined) => self.joined(*joined),
            BrainInput::Lost(session) | BrainInput::Broken(session) => {
                let Some(over) = self.sessions.remove(&session) else {
                    return;
                };
                self.lost(&over);
                if matches!(input, BrainInput::Broken(_)) {
                    Event::SessionBroken { session }
                } else {
                    Event::SessionLost { session }
                }
            }
            BrainInput::Suspected(session, why) => Event::WorkerSuspected { session, why },
            BrainInput::Reported(reported) => match self.reported(*reported) {
                Some(event) => event,
                None => return,
            },
            BrainInput::Explain(requests, count, answer) => {
                let found = if requests.is_empty() {
                    self.brain.decisions(count)
                } else {
                    self.brain.explain(&requests)
                };
                drop(answer.send(found));
                return;
            }
            BrainInput::Status(answer) => {
                let sessions = &self.sessions;
                let status = status::fleet(&self.brain.status(), &self.handoffs, |s| {
                    sessions.get(&s.session)
                });
                // Whoever asked may have gone.
                drop(answer.send(status));
                return;
            }
        };
        self.feed(now, event).await;
    }

    fn joined(&mut self, joined: Joined) -> Event {
        let page_size = joined.facts.page_size;
        (self.dispatch.shared.page_size).store(page_size, Ordering::Relaxed);
        self.sessions.insert(
            joined.session,
            Session {
                home: joined.home,
                name: joined.facts.name.as_str().into(),
                seats: HashMap::new(),
                step: None,
                pid: joined.pid,
                device: joined.device,
                address: joined.address,
                links: Vec::new(),
            },
        );
        Event::WorkerJoined {
            session: joined.session,
            worker: Box::new(joined.facts),
        }
    }

    /// Keeps the grants, forgets the closed seats. `None`: of a session that is over.
    fn reported(&mut self, reported: Reported) -> Option<Event> {
        let Reported {
            report,
            grants,
            links,
        } = reported;
        let session = self.sessions.get_mut(&report.session)?;
        if let Some(links) = links {
            session.links = links;
        }
        for (slot, grant) in report.opened.iter().zip(grants) {
            if let Some(seat) = session.seats.get_mut(slot) {
                seat.grant = Some(grant);
            }
        }
        let is_computing = report.load.prefill_tokens_queued.0 > 0;
        let has_stepped = session.step.replace(report.load.step) != Some(report.load.step);
        if !report.tokens.is_empty() || (has_stepped && is_computing) {
            let shared = &self.dispatch.shared;
            shared.pulse.beat(shared.start.elapsed());
        }
        // Before the brain hears of it: it may give a free slot away at once.
        for closed in &report.closed {
            let seat = session.seats.remove(&closed.slot);
            if seat.is_some_and(|seat| seat.is_arriving) {
                self.handoffs.count(Outcome::of(closed.why));
            }
        }
        Some(Event::StepReported(Box::new(report)))
    }

    /// One event, and what it leads to.
    pub(super) async fn feed(&mut self, now: Micros, event: Event) {
        let line = (self.recorder.as_mut()).and_then(|recorder| recorder.begin(now, &event));
        let actions = self.brain.handle(now, event);
        if let (Some(recorder), Some(line)) = (&mut self.recorder, line) {
            recorder.end(line, &actions);
        }
        for action in actions {
            self.act(action).await;
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Open {
                seat,
                sequence,
                pages,
                kind,
            } => {
                let Some(session) = self.sessions.get_mut(&seat.session) else {
                    tracing::error!(?seat, "open at a session that is over");
                    return;
                };
                let opened = Seat {
                    sequence,
                    grant: None,
                    is_arriving: kind == OpenKind::Import,
                };
                session.seats.insert(seat.slot, opened);
                self.order(seat, Order::Open { pages, kind }).await;
            }
            Action::Send { seat, to } => {
                let grant = match to {
                    None => None,
                    Some(to) => match self.seat(to).and_then(|seat| seat.grant.clone()) {
                        // Closed in the same report: the brain takes the Send back itself.
                        None => return,
                        grant => grant,
                    },
                };
                self.order(seat, Order::Send(grant)).await;
            }
            Action::Close { seat } => self.order(seat, Order::Close).await,
            Action::Switch { sequence, seat } => self.switch(sequence, seat).await,
            Action::Reject {
                sequence,
                why,
                retry_after,
                missed,
            } => {
                let missed = missed.unwrap_or_default();
                let error = self.bounds.error(why, missed, retry_after);
                let fail = FrontMessage::Fail { sequence, error };
                self.send(self.owner(sequence), fail).await;
            }
            Action::Break { session, why } => {
                let Some(over) = self.sessions.remove(&session) else {
                    return;
                };
                self.lost(&over);
                tracing::warn!(?session, ?why, "worker broke the protocol");
                self.send(usize::from(over.home), FrontMessage::Break(session))
                    .await;
            }
        }
    }

    fn seat(&self, seat: SeatId) -> Option<&Seat> {
        self.sessions.get(&seat.session)?.seats.get(&seat.slot)
    }

    /// An order for a seat that is open; one that has closed meanwhile needs none.
    async fn order(&self, seat: SeatId, order: Order) {
        if let Some(sequence) = self.seat(seat).map(|seat| seat.sequence) {
            self.order_of(seat, sequence, order).await;
        }
    }

    /// The hand-offs to a worker end with its session.
    fn lost(&mut self, session: &Session) {
        for _ in session.seats.values().filter(|seat| seat.is_arriving) {
            self.handoffs.count(Outcome::WorkerLost);
        }
    }

    /// A seat that arrived and closed in one report is switched to nevertheless: its tokens count.
    async fn switch(&mut self, sequence: SequenceId, seat: SeatId) {
        let session = self.sessions.get_mut(&seat.session);
        if let Some(seat) = session.and_then(|session| session.seats.get_mut(&seat.slot)) {
            seat.is_arriving = false;
        }
        self.handoffs.count(Outcome::Arrived);
        self.order_of(seat, sequence, Order::Switch).await;
    }

    async fn order_of(&self, seat: SeatId, sequence: SequenceId, order: Order) {
        let Some(session) = self.sessions.get(&seat.session) else {
            return;
        };
        let order = SeatOrder {
            sequence,
            session: seat.session,
            slot: seat.slot,
            home: session.home,
            worker: Arc::clone(&session.name),
            order,
        };
        self.send(self.owner(sequence), FrontMessage::Seat(order))
            .await;
    }

    fn owner(&self, sequence: SequenceId) -> usize {
        owner(sequence, self.dispatch.queues.fronts.len())
    }

    /// Waits for room: the receiver of a front thread never waits for anything else.
    async fn send(&self, front: usize, message: FrontMessage) {
        if let Some(queue) = self.dispatch.queues.fronts.get(front) {
            // Closed: that thread has ended, and its streams with it.
            drop(queue.send(message).await);
        }
    }
}
