//! The streams of one front thread: which sink belongs to which sequence, and which seat counts.
//!
//! A stream lives from submission until its sequence has ended. It keeps the answer so far, because
//! a replay needs it and because the position of a token is its place in that answer.
//!
//! A sink may do anything while it is called, submit or drop a ticket included: no borrow of the
//! table is held then. Handled on the thread that made the table only.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use dopd_core::ids::{RequestId, SeatId, SequenceId};
use slab::Slab;

use crate::{
    error::Error,
    streams::{
        key::{Life, StreamKey},
        messages::Flush,
        request::RequestShared,
        sink::{SeatNews, Sink, TokenLogprobs},
    },
};

/// One answer under way.
pub(super) struct Stream {
    pub(super) sequence: SequenceId,
    pub(super) generation: u32,
    pub(super) request: Arc<RequestShared>,
    /// `None` while it is called.
    pub(super) sink: Option<Box<dyn Sink>>,
    /// Answer tokens given to the sink; its length is the position.
    pub(super) answer: Vec<u32>,
    /// Seats so far.
    pub(super) lives: u32,
    /// The seat whose tokens count; 0 before the first.
    pub(super) current: Life,
    /// Where that seat is; `None` before the first, and once the brain has given it up.
    pub(super) current_seat: Option<SeatId>,
    /// Whether `current` has not reported its end.
    pub(super) current_open: bool,
    /// The last import seat that was opened.
    pub(super) import: Option<(SeatId, Life)>,
    /// The import seat that was switched to, until its flush is here.
    pub(super) awaited: Option<Life>,
    /// A flush that waits for the log probabilities that the old seat has.
    pub(super) parked: Option<Box<Parked>>,
    /// What an import seat left that finished before its session ended, if the brain has not said
    /// Switch yet: it will, and nobody else has these tokens any more.
    pub(super) legacy: Option<Box<Parked>>,
    /// What a worker said when a seat failed.
    pub(super) note: Option<Box<str>>,
}

/// A flush as it waits.
pub(super) struct Parked {
    pub(super) life: Life,
    pub(super) flush: Flush,
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprobs>,
}

/// What an Open needs from its stream.
#[derive(Debug)]
pub struct OpenParts {
    /// Where the seat's tokens go.
    pub key: StreamKey,
    /// The new seat.
    pub life: Life,
    /// Prompt, sampling, limits.
    pub request: Arc<RequestShared>,
    /// Answer so far; for an import only its length counts and this is empty.
    pub answer: Vec<u32>,
    /// Length of the answer so far.
    pub have: u32,
}

/// The table.
#[derive(Default)]
pub struct Streams {
    thread: u16,
    pub(super) inner: RefCell<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    streams: Slab<Stream>,
    by_sequence: HashMap<SequenceId, StreamKey>,
    generation: u32,
}

impl Inner {
    pub(super) fn get(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.streams
            .get_mut(key.index as usize)
            .filter(|stream| stream.generation == key.generation)
    }

    fn find(&mut self, sequence: SequenceId) -> Option<(StreamKey, &mut Stream)> {
        let key = *self.by_sequence.get(&sequence)?;
        self.get(key).map(|stream| (key, stream))
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<Stream> {
        self.get(key)?;
        let stream = self.streams.try_remove(key.index as usize)?;
        self.by_sequence.remove(&stream.sequence);
        Some(stream)
    }
}

impl Streams {
    /// An empty table for front thread `thread`.
    pub fn new(thread: u16) -> Self {
        Self {
            thread,
            inner: RefCell::default(),
        }
    }

    /// Streams in the table.
    pub fn len(&self) -> usize {
        self.inner.borrow().streams.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A new stream for `sequence`; it has no seat.
    pub fn insert(
        &self,
        request: Arc<RequestShared>,
        sequence: SequenceId,
        sink: Box<dyn Sink>,
    ) -> StreamKey {
        let mut inner = self.inner.borrow_mut();
        inner.generation = inner.generation.wrapping_add(1);
        let generation = inner.generation;
        let place = inner.streams.insert(Stream {
            sequence,
            generation,
            request,
            sink: Some(sink),
            answer: Vec::new(),
            lives: 0,
            current: Life(0),
            current_seat: None,
            current_open: false,
            import: None,
            awaited: None,
            parked: None,
            legacy: None,
            note: None,
        });
        let key = StreamKey {
            thread: self.thread,
            index: u32::try_from(place).unwrap_or(u32::MAX),
            generation,
        };
        inner.by_sequence.insert(sequence, key);
        key
    }

    /// A new seat for `sequence`. A compute seat is current at once. `None`: the stream is gone.
    pub fn open_compute(&self, sequence: SequenceId, seat: SeatId) -> Option<OpenParts> {
        // Its source will say nothing more; the brain has counted what arrived.
        self.unpark_now(sequence, None);
        let mut inner = self.inner.borrow_mut();
        let (key, stream) = inner.find(sequence)?;
        stream.lives += 1;
        let life = Life(stream.lives);
        stream.current = life;
        stream.current_seat = Some(seat);
        stream.current_open = true;
        stream.awaited = None;
        // What an import seat had made that was not switched to is computed again.
        stream.legacy = None;
        Some(OpenParts {
            key,
            life,
            request: Arc::clone(&stream.request),
            have: count(stream.answer.len()),
            answer: stream.answer.clone(),
        })
    }

    /// A new import seat for `sequence`; [`Self::switch`] makes it current. `None`: the stream is
    /// gone.
    pub fn open_import(&self, sequence: SequenceId, seat: SeatId) -> Option<OpenParts> {
        let mut inner = self.inner.borrow_mut();
        let (key, stream) = inner.find(sequence)?;
        stream.lives += 1;
        let life = Life(stream.lives);
        stream.import = Some((seat, life));
        Some(OpenParts {
            key,
            life,
            request: Arc::clone(&stream.request),
            have: count(stream.answer.len()),
            answer: Vec::new(),
        })
    }

    /// The import seat `seat` shall be current as soon as its flush is here. Returns the sequence
    /// if its sink wants no more.
    pub fn switch(&self, sequence: SequenceId, seat: SeatId) -> Option<SequenceId> {
        let (key, legacy) = {
            let mut inner = self.inner.borrow_mut();
            let (key, stream) = inner.find(sequence)?;
            let Some((_, life)) = stream.import.filter(|(import, _)| *import == seat) else {
                tracing::error!(?sequence, ?seat, "switch to a seat that was not opened");
                return None;
            };
            stream.awaited = Some(life);
            (key, stream.legacy.take_if(|legacy| legacy.life == life)?)
        };
        let Parked {
            life,
            flush,
            tokens,
            logprobs,
        } = *legacy;
        self.flush(key, life, flush, &tokens, &logprobs)
    }

    /// The brain closes `seat`. If it was the current one it is given up, and its sequence will go
    /// on elsewhere from what the client has: nothing that it still says counts. The source of a
    /// hand-off that arrived is closed, too, but its last report may know what nobody else does.
    /// Returns the sequence if its sink wants no more.
    pub fn close(&self, sequence: SequenceId, seat: SeatId) -> Option<SequenceId> {
        let stopped = self.unpark_now(sequence, Some(seat));
        let mut inner = self.inner.borrow_mut();
        let Some((_, stream)) = inner.find(sequence) else {
            return stopped;
        };
        let is_current = match (stream.awaited, &stream.parked) {
            (None, None) => stream.current_seat == Some(seat),
            (Some(life), _) => stream.import == Some((seat, life)),
            // Of its source: the destination's would have been unparked.
            (None, Some(_)) => false,
        };
        if is_current {
            stream.current = Life(0);
            stream.current_seat = None;
            stream.current_open = false;
            stream.awaited = None;
        }
        stopped
    }

    /// Lets a parked flush count now, whatever of it is unknown: the brain has counted its tokens.
    /// With a seat: only if the flush is of that one. Returns the sequence if its sink wants no
    /// more.
    fn unpark_now(&self, sequence: SequenceId, seat: Option<SeatId>) -> Option<SequenceId> {
        let key = {
            let mut inner = self.inner.borrow_mut();
            let (key, stream) = inner.find(sequence)?;
            let life = stream.parked.as_ref()?.life;
            let is_meant = seat.is_none_or(|seat| stream.import == Some((seat, life)));
            is_meant.then_some(key)?
        };
        self.unpark(key, true)
    }

    /// Tells the sink of `sequence` where it is.
    pub fn seat(&self, sequence: SequenceId, news: SeatNews<'_>) {
        let taken = {
            let mut inner = self.inner.borrow_mut();
            let found = inner.find(sequence);
            found.and_then(|(key, stream)| Some((key, stream.sink.take()?)))
        };
        let Some((key, mut sink)) = taken else { return };
        sink.seat(news);
        if let Some(stream) = self.inner.borrow_mut().get(key) {
            stream.sink = Some(sink);
        }
    }

    /// The sequence ends with `error`; what a worker said of it is added.
    pub fn fail(&self, sequence: SequenceId, mut error: Error) {
        let stream = {
            let mut inner = self.inner.borrow_mut();
            let key = inner.find(sequence).map(|(key, _)| key);
            key.and_then(|key| inner.remove(key))
        };
        let Some(Stream {
            sink: Some(mut sink),
            note,
            ..
        }) = stream
        else {
            return;
        };
        if let Some(note) = note {
            error.message = format!("{}: {note}", error.message).into();
        }
        sink.fail(error);
    }

    /// Forgets streams without a word to their sinks. Returns the request if one of them was there.
    pub fn cancel(&self, keys: &[StreamKey]) -> Option<RequestId> {
        let mut request = None;
        for key in keys {
            // Dropped after the borrow: a sink may own anything.
            let stream = self.inner.borrow_mut().remove(*key);
            if let Some(stream) = stream {
                request = Some(stream.sequence.request);
            }
        }
        request
    }

    /// Fails every stream with `error`.
    pub fn fail_all(&self, error: &Error) {
        let sequences: Vec<SequenceId> = self.inner.borrow().by_sequence.keys().copied().collect();
        for sequence in sequences {
            self.fail(sequence, error.clone());
        }
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("thread", &self.thread)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Lengths of answers are bounded by `max_tokens`, a u32.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
