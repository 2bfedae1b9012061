//! One direction of a connection: what is said arrives in order, late, or not at all.

use std::collections::VecDeque;

use dopd_core::units::Micros;

/// Messages under way, oldest first.
#[derive(Debug)]
pub(crate) struct Pipe<T> {
    queue: VecDeque<(Micros, T)>,
    /// Nothing arrives before: the way is a black hole until then.
    hold: Micros,
    last: Micros,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            hold: Micros(0),
            last: Micros(0),
        }
    }
}

/// What an arrival brings.
#[derive(Debug)]
pub(crate) enum Arrival<T> {
    /// The oldest message.
    Message(T),
    /// Not before then.
    Later(Micros),
    /// What was to come is lost.
    Nothing,
}

impl<T> Pipe<T> {
    /// Adds a message that takes `delay_us`; returns when it arrives.
    pub(crate) fn push(&mut self, now: Micros, delay_us: u64, message: T) -> Micros {
        let at = now.plus(Micros(delay_us)).max(self.last).max(self.hold);
        self.last = at;
        self.queue.push_back((at, message));
        at
    }

    /// The oldest message, if it is there.
    pub(crate) fn pop(&mut self, now: Micros) -> Arrival<T> {
        let Some((at, _)) = self.queue.front() else {
            return Arrival::Nothing;
        };
        let at = (*at).max(self.hold);
        if at > now {
            return Arrival::Later(at);
        }
        match self.queue.pop_front() {
            Some((_, message)) => Arrival::Message(message),
            None => Arrival::Nothing,
        }
    }

    /// Swallows everything until then.
    pub(crate) fn hold(&mut self, until: Micros) {
        self.hold = self.hold.max(until);
    }

    /// When the newest message arrives.
    pub(crate) fn last(&self) -> Micros {
        self.last
    }

    pub(crate) fn held_until(&self) -> Micros {
        self.hold
    }

    /// Loses what is under way beyond the first `keep` messages.
    pub(crate) fn cut(&mut self, keep: usize) {
        self.queue.truncate(keep);
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}
