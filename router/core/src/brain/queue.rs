//! The one place where sequences wait: lane by lane, then by priority, the lowest first, then by
//! arrival. Every operation is O(log n).

use std::collections::BTreeMap;

use crate::units::Tokens;

/// Part of the queue, the first that goes first. `replay` says when a lane is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Ran before and made tokens: its client waits in the middle of an answer.
    Replay,
    /// Ran before in vain.
    Retry,
    /// Never ran.
    Fresh,
}

/// Place in the queue; smaller goes first. Unique per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    pub(super) lane: Lane,
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

    /// The sequence that goes next from the lanes that are open.
    pub(super) fn first(&self, is_open: impl Fn(Lane) -> bool) -> Option<usize> {
        let lanes = [Lane::Replay, Lane::Retry, Lane::Fresh];
        lanes
            .into_iter()
            .filter(|&lane| is_open(lane))
            .find_map(|lane| {
                let start = QueueKey {
                    lane,
                    priority: i32::MIN,
                    arrival: 0,
                };
                let (key, &(sequence, _)) = self.order.range(start..).next()?;
                (key.lane == lane).then_some(sequence)
            })
    }

    /// Priority of the one that goes last, which no other is lower than if it never ran.
    pub(super) fn lowest(&self) -> Option<i32> {
        let (key, _) = self.order.last_key_value()?;
        (key.lane == Lane::Fresh).then_some(key.priority)
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
