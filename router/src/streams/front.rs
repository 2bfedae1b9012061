//! One front thread's part of the router: its streams, the links that live on it, its way out.
//!
//! Installed in a thread-local by `dispatch` at the start of a front thread; `workers` and tickets
//! find it there.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use dopd_core::{
    action::OpenKind,
    ids::{SeatId, SequenceId, SessionId},
};

use crate::{
    streams::{
        key::{Life, StreamKey},
        messages::{
            Batch, BrainInput, Ended, Flush, FrontMessage, LinkCommand, LinkOrder, Order, RowKind,
            SeatOrder,
        },
        outbox::{Outbox, Queues},
        request::RequestShared,
        sink::{SeatNews, TokenLogprobs},
        table::{OpenParts, Streams},
    },
    wire::worker::{Compute, Import, Open, open},
};

thread_local! {
    static FRONT: RefCell<Option<Rc<Front>>> = const { RefCell::new(None) };
}

/// A worker's link, as this room sees it. Implemented by `workers`.
pub trait LinkPort {
    /// Carries out a command. Must not call into the front's links.
    fn command(&self, command: LinkCommand);
    /// Ends its stream.
    fn end_session(&self);
}

/// One front thread's state.
pub struct Front {
    /// Index of the thread.
    pub index: u16,
    /// The streams that were submitted here.
    pub streams: Streams,
    /// The way out.
    pub outbox: Outbox,
    links: RefCell<HashMap<SessionId, Rc<dyn LinkPort>>>,
}

impl Front {
    /// A front with nothing in it.
    pub fn new(index: u16, queues: Queues) -> Rc<Self> {
        Rc::new(Self {
            index,
            streams: Streams::new(index),
            outbox: Outbox::new(queues),
            links: RefCell::default(),
        })
    }

    /// The front of this thread, if it is a front thread.
    pub fn current() -> Option<Rc<Self>> {
        // Tickets may be dropped while the thread's locals are torn down: nothing is left then.
        (FRONT.try_with(|front| front.borrow().clone()).ok()).flatten()
    }

    /// Makes `self` the front of this thread.
    pub fn install(self: &Rc<Self>) {
        FRONT.with(|front| *front.borrow_mut() = Some(Rc::clone(self)));
    }

    /// Takes `self` out of its thread, if it is the one in it.
    pub fn uninstall(self: &Rc<Self>) {
        let front = FRONT.try_with(|front| {
            let mut front = front.borrow_mut();
            front.take_if(|front| Rc::ptr_eq(front, self))
        });
        drop(front);
    }

    /// A worker attached on this thread.
    pub fn add_link(&self, session: SessionId, link: Rc<dyn LinkPort>) {
        self.links.borrow_mut().insert(session, link);
    }

    /// Its session ended; commands for it are dropped from now on.
    pub fn remove_link(&self, session: SessionId) {
        self.links.borrow_mut().remove(&session);
    }

    /// Handles one message of this thread's queue. Never waits.
    pub fn handle(&self, message: FrontMessage) {
        match message {
            FrontMessage::Seat(order) => self.seat(order),
            FrontMessage::Fail { sequence, error } => self.streams.fail(sequence, error),
            FrontMessage::Link { session, command } => self.link(session, command),
            FrontMessage::Break(session) => {
                let link = self.links.borrow().get(&session).cloned();
                if let Some(link) = link {
                    link.end_session();
                }
            }
            FrontMessage::Batch(batch) => self.batch(&batch),
        }
    }

    /// Ends the streams of a request whose ticket was dropped.
    pub fn cancel(&self, keys: &[StreamKey]) {
        if let Some(request) = self.streams.cancel(keys) {
            self.outbox.to_brain(BrainInput::Cancelled(request));
        }
    }

    /// Tokens for a stream of this thread.
    pub fn tokens(&self, key: StreamKey, life: Life, tokens: &[u32], logprobs: &[TokenLogprobs]) {
        self.stopped(self.streams.tokens(key, life, tokens, logprobs));
    }

    /// Log probabilities of the prompt for a stream of this thread.
    pub fn prompt_logprobs(
        &self,
        key: StreamKey,
        life: Life,
        start: u32,
        logprobs: &[TokenLogprobs],
    ) {
        self.streams.prompt_logprobs(key, life, start, logprobs);
    }

    /// What a seat of a stream of this thread found in its worker's cache.
    pub fn reused(&self, key: StreamKey, life: Life, tokens: u32) {
        self.streams.reused(key, life, tokens);
    }

    /// A flush for a stream of this thread.
    pub fn flush(
        &self,
        key: StreamKey,
        life: Life,
        flush: Flush,
        tokens: &[u32],
        logprobs: &[TokenLogprobs],
    ) {
        self.stopped(self.streams.flush(key, life, flush, tokens, logprobs));
    }

    /// The end of a seat of a stream of this thread.
    pub fn closed(&self, key: StreamKey, life: Life, ended: &Ended) {
        self.stopped(self.streams.closed(key, life, ended));
    }

    /// Tells the brain that a sink wants no more.
    fn stopped(&self, sequence: Option<SequenceId>) {
        if let Some(sequence) = sequence {
            self.outbox.to_brain(BrainInput::Stopped(sequence));
        }
    }

    /// Carries out a decision on a seat of one of this thread's streams.
    fn seat(&self, order: SeatOrder) {
        let SeatOrder {
            sequence,
            session,
            slot,
            home,
            worker,
            order,
        } = order;
        let seat = SeatId { session, slot };
        let kind = match order {
            Order::Open { pages, kind } => {
                let parts = match kind {
                    OpenKind::Compute => self.streams.open_compute(sequence, seat),
                    OpenKind::Import => self.streams.open_import(sequence, seat),
                };
                if let Some(parts) = parts {
                    if kind == OpenKind::Compute {
                        let news = SeatNews::Placed { worker: &worker };
                        self.streams.seat(sequence, news);
                    }
                    let (key, life) = (parts.key, parts.life);
                    let open = Box::new(open_message(seat, sequence, pages.0, kind, parts));
                    LinkOrder::Open { open, key, life }
                } else {
                    // The brain may not know: the end may have come in a report that it refused.
                    self.outbox.to_brain(BrainInput::Stopped(sequence));
                    LinkOrder::Void
                }
            }
            Order::Send(grant) => LinkOrder::Send(grant),
            Order::Close => {
                self.stopped(self.streams.close(sequence, seat));
                LinkOrder::Close
            }
            Order::Switch => {
                let news = SeatNews::Switched { worker: &worker };
                self.streams.seat(sequence, news);
                self.stopped(self.streams.switch(sequence, seat));
                LinkOrder::Switch
            }
        };
        let command = LinkCommand {
            slot,
            sequence,
            kind,
        };
        if home == self.index {
            self.link(session, command);
        } else {
            let message = FrontMessage::Link { session, command };
            self.outbox.to_front(home, message);
        }
    }

    /// Passes a command to a link of this thread. A session that is gone needs none.
    fn link(&self, session: SessionId, command: LinkCommand) {
        let link = self.links.borrow().get(&session).cloned();
        if let Some(link) = link {
            link.command(command);
        }
    }

    /// What another thread's worker brought.
    fn batch(&self, batch: &Batch) {
        let (mut tokens, mut logprobs) = (batch.tokens.as_slice(), batch.logprobs.as_slice());
        for row in &batch.rows {
            let row_tokens = take(&mut tokens, row.tokens);
            let row_logprobs = take(&mut logprobs, row.logprobs);
            match &row.kind {
                RowKind::Tokens => self.tokens(row.key, row.life, row_tokens, row_logprobs),
                RowKind::Prompt { start } => {
                    self.prompt_logprobs(row.key, row.life, *start, row_logprobs);
                }
                RowKind::Reused { tokens } => self.reused(row.key, row.life, *tokens),
                RowKind::Flush(flush) => {
                    self.flush(row.key, row.life, *flush, row_tokens, row_logprobs);
                }
                RowKind::Closed(ended) => self.closed(row.key, row.life, ended),
            }
        }
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front")
            .field("index", &self.index)
            .field("streams", &self.streams)
            .field("links", &self.links.borrow().len())
            .finish_non_exhaustive()
    }
}

/// The first `count` items of `rest`, which is left with the others.
fn take<'a, T>(rest: &mut &'a [T], count: u32) -> &'a [T] {
    let (head, tail) = rest.split_at_checked(count as usize).unwrap_or((rest, &[]));
    *rest = tail;
    head
}

/// The Open of a seat.
fn open_message(
    seat: SeatId,
    sequence: SequenceId,
    pages: u32,
    kind: OpenKind,
    parts: OpenParts,
) -> Open {
    let request = parts.request;
    let mut sampling = request.sampling;
    sampling.choice = u32::from(sequence.choice);
    Open {
        slot: seat.slot.0,
        pages,
        priority: request.priority,
        prompt_tokens: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
        prompt_hash: request.prompt_hash,
        sampling: Some(sampling),
        limits: Some(request.limits.clone()),
        request_id: request.label.clone(),
        adjustments: request.adjustments.clone(),
        // The choices share the prompt: one of them tells.
        prompt_logprobs: request.prompt_logprobs.filter(|_| sequence.choice == 0),
        traceparent: request.traceparent.clone(),
        tenant: request.tenant,
        slo_tpot_us: request.slo_tpot_us,
        prefix_salt: salt(&request),
        kind: Some(match kind {
            OpenKind::Compute => open::Kind::Compute(Compute {
                prompt: request.prompt.to_vec(),
                answer: parts.answer,
                prompt_group: prompt_group(&request),
            }),
            OpenKind::Import => open::Kind::Import(Import {
                have: parts.have,
                prompt: penalized_prompt(&request),
                prefix: (request.prefix.as_ref()).map_or_else(Vec::new, |it| it.links().to_vec()),
                tail: (request.prefix.as_ref())
                    .map_or_else(Vec::new, |it| it.tail(&request.prompt).to_vec()),
            }),
        }),
    }
}

fn salt(request: &RequestShared) -> Vec<u8> {
    (request.prefix.as_ref()).map_or_else(Vec::new, |prefix| prefix.salt.to_vec())
}

/// The number that the seats of one request's choices share; 0 for a request of one choice.
fn prompt_group(request: &RequestShared) -> u64 {
    if request.choices > 1 {
        request.id.0.wrapping_add(1).max(1)
    } else {
        0
    }
}

/// The prompt, if a seat that gets its KV from elsewhere needs it all the same.
fn penalized_prompt(request: &RequestShared) -> Vec<u32> {
    let penalized = request
        .adjustments
        .as_ref()
        .is_some_and(|adjustments| (adjustments.repetition_penalty - 1.0).abs() > f32::EPSILON);
    if penalized {
        request.prompt.to_vec()
    } else {
        Vec::new()
    }
}
