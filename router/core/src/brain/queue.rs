//! The one place where sequences wait: lane by lane, then by priority, the lowest first, then by
//! arrival. Every operation is O(log n).

use std::collections::BTreeMap;

use crate::units::{Micros, Tokens};

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

/// Lanes from which may be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenLanes(pub(super) [bool; 3]);

impl OpenLanes {
    pub(super) const fn has(self, lane: Lane) -> bool {
        self.0[lane as usize]
    }
}

/// Place in the queue; smaller goes first. Unique per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueKey {
    pub(super) lane: Lane,
    pub(super) priority: i32,
    /// Counts arrivals of sequences.
    pub(super) arrival: u64,
}

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Key of the sequence.
    pub(super) sequence: usize,
    /// That it has to compute.
    pub(super) tokens: Tokens,
    /// What that takes.
    pub(super) prefill: Micros,
}

#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    order: BTreeMap<QueueKey, Item>,
    tokens: u64,
    work_us: u64,
}

impl WaitQueue {
    /// Adds a sequence.
    pub(super) fn push(&mut self, key: QueueKey, item: Item) {
        self.order.insert(key, item);
        self.tokens = self.tokens.saturating_add(u64::from(item.tokens.0));
        self.work_us = self.work_us.saturating_add(item.prefill.0);
    }

    pub(super) fn remove(&mut self, key: QueueKey) {
        if let Some(item) = self.order.remove(&key) {
            self.tokens = self.tokens.saturating_sub(u64::from(item.tokens.0));
            self.work_us = self.work_us.saturating_sub(item.prefill.0);
        }
    }

    /// The sequence that goes next from the lanes that are open.
    pub(super) fn first(&mut self, is_open: impl Fn(Lane) -> bool) -> Option<usize> {
        self.scan(is_open, 1).pop()
    }

    /// The next `count` at most, in the order in which they would go.
    pub(super) fn scan(&mut self, is_open: impl Fn(Lane) -> bool, count: usize) -> Vec<usize> {
        let lanes = [Lane::Replay, Lane::Retry, Lane::Fresh];
        let of_lane = |lane| {
            let key = |priority, arrival| QueueKey {
                lane,
                priority,
                arrival,
            };
            let range = key(i32::MIN, 0)..=key(i32::MAX, u64::MAX);
            self.order.range(range).map(|(_, item)| item.sequence)
        };
        lanes
            .into_iter()
            .filter(|&lane| is_open(lane))
            .flat_map(of_lane)
            .take(count)
            .collect()
    }

    /// Predicted prefill of all that wait, on a worker of the fastest kind.
    pub(super) const fn work_us(&self) -> Micros {
        Micros(self.work_us)
    }

    /// Priority of the one that goes last, which no other is lower than if it never ran.
    pub(super) fn lowest(&self) -> Option<i32> {
        let (key, _) = self.order.last_key_value()?;
        (key.lane == Lane::Fresh).then_some(key.priority)
    }

    /// All that wait, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.order.values().map(|item| item.sequence)
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
