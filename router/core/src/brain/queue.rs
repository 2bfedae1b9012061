//! The one place where sequences wait: replays first, then by priority, the lowest first, then by
//! arrival. Every operation is O(log n).

use std::collections::BTreeMap;

use crate::units::Tokens;

/// Place in the queue; smaller goes first. Unique per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    /// A sequence that ran before goes before those that never did: its client is waiting in the
    /// middle of an answer.
    pub(super) is_fresh: bool,
    pub(super) priority: i32,
    /// Counts arrivals of sequences.
    pub(super) arrival: u64,
}

#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    order: BTreeMap<QueueKey, (usize, Tokens)>,
    tokens: u64,
}

impl WaitQueue {
    /// Adds a sequence that has so many tokens to compute.
    pub(super) fn push(&mut self, key: QueueKey, sequence: usize, tokens: Tokens) {
        self.order.insert(key, (sequence, tokens));
        self.tokens = self.tokens.saturating_add(u64::from(tokens.0));
    }

    pub(super) fn remove(&mut self, key: QueueKey) {
        if let Some((_, tokens)) = self.order.remove(&key) {
            self.tokens = self.tokens.saturating_sub(u64::from(tokens.0));
        }
    }

    /// The sequence that goes next.
    pub(super) fn first(&self) -> Option<usize> {
        self.order
            .first_key_value()
            .map(|(_, &(sequence, _))| sequence)
    }

    /// All that wait, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.order.values().map(|&(sequence, _)| sequence)
    }

    /// Tokens to compute of all that wait.
    pub(super) const fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
