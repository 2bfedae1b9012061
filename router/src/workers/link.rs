//! One attached worker as its home thread sees it: which slot holds whose seat.
//!
//! Commands come from the front's receiver ([`Link::command`]), reports from the session's reader
//! ([`Link::report`] in [`super::columns`]); both on the home thread, neither waits: no lock.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
};

use dopd_core::{
    event::CloseReason,
    ids::{SequenceId, SessionId, SlotId},
};
use tokio_util::sync::CancellationToken;

use crate::{
    streams::{
        front::{Front, LinkPort},
        key::{Life, StreamKey},
        messages::{Batch, BatchRow, Ended, Flush, FrontMessage, LinkCommand, LinkOrder, RowKind},
        sink::TokenLogprobs,
    },
    wire::worker::{Close, Grant, Open, Send, command, open},
    workers::{hello::NUM_SEQS_MAX, outgoing::Outgoing, prompt::Untold},
};

/// Slots of a session: each seat that may run and as many that wait or close.
const SLOTS_MAX: u32 = 2 * NUM_SEQS_MAX;

/// What a link knows of its worker.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Its session.
    pub(super) session: SessionId,
    /// Its name.
    pub(super) name: String,
    /// Its process.
    pub(super) incarnation: u64,
    /// Size of its vocabulary.
    pub(super) vocab_size: u32,
    /// Size of its pool.
    pub(super) pages_total: u32,
}

/// A seat at this worker.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) sequence: SequenceId,
    pub(super) key: StreamKey,
    pub(super) life: Life,
    pub(super) phase: Phase,
    /// Tokens of its prompt.
    pub(super) prompt: u32,
    /// Answer tokens made.
    pub(super) pos: u32,
    /// Most answer tokens.
    pub(super) max: u32,
    /// Log probabilities of its prompt that are to come, if they were asked for.
    pub(super) untold: Option<Untold>,
    /// The worker has said something of it.
    pub(super) is_answered: bool,
    /// What the worker said of it that cannot be: nothing counts any more, closed it has failed.
    pub(super) spoiled: Option<Box<str>>,
    /// Close was sent.
    pub(super) closing: bool,
}

/// How far a seat is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Its tokens go to its stream.
    Running,
    /// Its KV is on the way.
    Importing,
    /// Its KV is here; what it makes is kept until the brain says Switch.
    Arrived(Box<Kept>),
}

/// Tail and tokens of an arrived seat; at most `max` tokens.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) flush: Flush,
    pub(super) tokens: Vec<u32>,
    /// Of the tokens past the tail, if they were asked for.
    pub(super) logprobs: Vec<TokenLogprobs>,
}

/// One attached worker.
pub(super) struct Link {
    pub(super) identity: Identity,
    pub(super) front: Rc<Front>,
    pub(super) outgoing: Arc<Outgoing>,
    /// Ends the session: another worker of its name joined, or it broke the protocol.
    pub(super) stop: CancellationToken,
    /// The brain found that the worker broke the protocol.
    pub(super) is_broken: Cell<bool>,
    pub(super) state: RefCell<State>,
}

/// The seats of a link.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By slot.
    pub(super) slots: Vec<Option<Seat>>,
    /// Arrived seats that ended before the brain said Switch or Close: it will.
    pub(super) ended: Vec<(SlotId, Seat)>,
    /// Seats that were never opened because their stream was gone; told with the next report.
    pub(super) voids: VecDeque<SlotId>,
    /// One per front thread, filled during a report and sent at its end.
    pub(super) batches: Vec<Option<Box<Batch>>>,
}

impl State {
    /// The seat in `slot`.
    pub(super) fn seat(&mut self, slot: u32) -> Option<&mut Seat> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The seat in `slot` if it is of `sequence`.
    fn seat_of(&mut self, slot: SlotId, sequence: SequenceId) -> Option<&mut Seat> {
        self.seat(slot.0).filter(|seat| seat.sequence == sequence)
    }

    /// Frees `slot`.
    pub(super) fn take(&mut self, slot: u32) -> Option<Seat> {
        self.slots.get_mut(slot as usize)?.take()
    }

    /// Takes an ended seat of `sequence` out.
    fn take_ended(&mut self, slot: SlotId, sequence: SequenceId) -> Option<Seat> {
        let place = (self.ended.iter())
            .position(|(ended, seat)| *ended == slot && seat.sequence == sequence)?;
        Some(self.ended.swap_remove(place).1)
    }
}

impl Link {
    /// A link with no seats.
    pub(super) fn new(
        identity: Identity,
        front: Rc<Front>,
        outgoing: Arc<Outgoing>,
        stop: CancellationToken,
    ) -> Rc<Self> {
        Rc::new(Self {
            identity,
            front,
            outgoing,
            stop,
            is_broken: Cell::new(false),
            state: RefCell::default(),
        })
    }

    fn open(&self, slot: SlotId, sequence: SequenceId, open: Open, key: StreamKey, life: Life) {
        let mut state = self.state.borrow_mut();
        let index = slot.0 as usize;
        if slot.0 >= SLOTS_MAX || state.slots.get(index).is_some_and(Option::is_some) {
            let worker = &self.identity.name;
            tracing::error!(
                worker,
                ?slot,
                ?sequence,
                "open for a slot that cannot be used"
            );
            state.voids.push_back(slot);
            return;
        }
        if state.slots.len() <= index {
            state.slots.resize_with(index + 1, || None);
        }
        let (phase, pos) = match &open.kind {
            Some(open::Kind::Import(import)) => (Phase::Importing, import.have),
            Some(open::Kind::Compute(compute)) => (Phase::Running, length(&compute.answer)),
            None => (Phase::Running, 0),
        };
        let seat = Seat {
            sequence,
            key,
            life,
            phase,
            prompt: open.prompt_tokens,
            pos,
            max: open.limits.as_ref().map_or(0, |limits| limits.max_tokens),
            untold: Untold::of(&open),
            is_answered: false,
            spoiled: None,
            closing: false,
        };
        if let Some(place) = state.slots.get_mut(index) {
            *place = Some(seat);
        }
        drop(state);
        self.outgoing.push(command::Kind::Open(open));
    }

    fn send(&self, slot: SlotId, sequence: SequenceId, grant: Option<Grant>) {
        if self.state.borrow_mut().seat_of(slot, sequence).is_some() {
            let slot = slot.0;
            self.outgoing
                .push(command::Kind::Send(Send { slot, grant }));
        }
    }

    fn close(&self, slot: SlotId, sequence: SequenceId) {
        let mut state = self.state.borrow_mut();
        drop(state.take_ended(slot, sequence));
        let Some(seat) = state.seat_of(slot, sequence).filter(|seat| !seat.closing) else {
            return;
        };
        seat.closing = true;
        self.outgoing
            .push(command::Kind::Close(Close { slot: slot.0 }));
    }

    fn switch(&self, slot: SlotId, sequence: SequenceId) {
        let mut state = self.state.borrow_mut();
        let (key, life, phase) = if let Some(seat) = state.take_ended(slot, sequence) {
            (seat.key, seat.life, seat.phase)
        } else if let Some(seat) = state.seat_of(slot, sequence) {
            let phase = std::mem::replace(&mut seat.phase, Phase::Running);
            (seat.key, seat.life, phase)
        } else {
            return;
        };
        drop(state);
        let Phase::Arrived(kept) = phase else {
            let worker = &self.identity.name;
            tracing::error!(
                worker,
                ?slot,
                ?sequence,
                "switch to a seat that did not arrive"
            );
            return;
        };
        self.flush(key, life, *kept);
    }

    /// Whether the worker owes an answer: to an Open, or to a Close.
    pub(super) fn is_asked(&self) -> bool {
        let state = self.state.borrow();
        let mut seats = state.slots.iter().flatten();
        seats.any(|seat| seat.closing || !seat.is_answered)
    }

    /// Gives a stream what was kept for it.
    fn flush(&self, key: StreamKey, life: Life, kept: Kept) {
        let Kept {
            flush,
            tokens,
            logprobs,
        } = kept;
        if key.thread == self.front.index {
            self.front.flush(key, life, flush, &tokens, &logprobs);
            return;
        }
        let row = BatchRow {
            key,
            life,
            tokens: length(&tokens),
            logprobs: length(&logprobs),
            kind: RowKind::Flush(flush),
        };
        let batch = Box::new(Batch {
            rows: vec![row],
            tokens,
            logprobs,
        });
        self.front
            .outbox
            .to_front(key.thread, FrontMessage::Batch(batch));
    }

    /// The session ended: tells the owners of its streams that no more tokens come.
    pub(super) fn end(&self) {
        self.outgoing.close();
        let (finished, mut seats): (Vec<_>, Vec<Seat>) = {
            let mut state = self.state.borrow_mut();
            let finished = std::mem::take(&mut state.ended);
            (finished, state.slots.drain(..).flatten().collect())
        };
        // The brain may know that these have finished, and will not replay them; or that they have
        // arrived, and counts their tails as the client's: its Switch is on the way.
        let mut finished: Vec<Seat> = finished.into_iter().map(|(_, seat)| seat).collect();
        let has_arrived = |seat: &mut Seat| matches!(seat.phase, Phase::Arrived(_));
        finished.extend(seats.extract_if(.., has_arrived));
        for seat in finished {
            if let Phase::Arrived(mut kept) = seat.phase {
                kept.flush.is_legacy = true;
                self.flush(seat.key, seat.life, *kept);
            }
        }
        let ended = Ended {
            why: CloseReason::Lost,
            note: None,
        };
        for seat in seats {
            if seat.key.thread == self.front.index {
                self.front.closed(seat.key, seat.life, &ended);
            } else {
                let mut state = self.state.borrow_mut();
                state.row(&seat, &[], &[], RowKind::Closed(ended.clone()));
            }
        }
        self.post_batches();
    }

    /// Sends what a report brought for other threads.
    pub(super) fn post_batches(&self) {
        self.post_batches_of(&mut self.state.borrow_mut());
    }

    /// The same for one who holds the state.
    pub(super) fn post_batches_of(&self, state: &mut State) {
        for (index, batch) in state.batches.iter_mut().enumerate() {
            if let (Some(batch), Ok(index)) = (batch.take(), u16::try_from(index)) {
                self.front
                    .outbox
                    .to_front(index, FrontMessage::Batch(batch));
            }
        }
    }
}

impl State {
    /// Adds a row to the batch of the thread that owns the seat's stream.
    pub(super) fn row(
        &mut self,
        seat: &Seat,
        tokens: &[u32],
        logprobs: &[TokenLogprobs],
        kind: RowKind,
    ) {
        add_row(
            &mut self.batches,
            (seat.key, seat.life),
            tokens,
            logprobs,
            kind,
        );
    }
}

/// The same without the rest of the state.
pub(super) fn add_row(
    batches: &mut Vec<Option<Box<Batch>>>,
    (key, life): (StreamKey, Life),
    tokens: &[u32],
    logprobs: &[TokenLogprobs],
    kind: RowKind,
) {
    let index = usize::from(key.thread);
    if batches.len() <= index {
        batches.resize_with(index + 1, || None);
    }
    let Some(place) = batches.get_mut(index) else {
        return;
    };
    let batch = place.get_or_insert_default();
    batch.tokens.extend_from_slice(tokens);
    batch.logprobs.extend_from_slice(logprobs);
    batch.rows.push(BatchRow {
        key,
        life,
        tokens: length(tokens),
        logprobs: length(logprobs),
        kind,
    });
}

impl LinkPort for Link {
    fn end_session(&self) {
        self.is_broken.set(true);
        self.stop.cancel();
    }

    fn command(&self, command: LinkCommand) {
        let LinkCommand {
            slot,
            sequence,
            kind,
        } = command;
        match kind {
            LinkOrder::Open { open, key, life } => self.open(slot, sequence, *open, key, life),
            LinkOrder::Void => self.state.borrow_mut().voids.push_back(slot),
            LinkOrder::Send(grant) => self.send(slot, sequence, grant),
            LinkOrder::Close => self.close(slot, sequence),
            LinkOrder::Switch => self.switch(slot, sequence),
        }
    }
}

/// Lengths are bounded by `max_tokens` and the size of a message, far below.
fn length<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
