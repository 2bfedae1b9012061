//! The one place where sequences wait, and the order in which they go:
//!
//! 1. lane by lane: who ran before, then who ran in vain, then the others;
//! 2. in a lane, those that can still meet the target for their first token before those that
//!    cannot (`late`);
//! 3. by priority, the lowest first;
//! 4. by tenant, who had least first ([`super::share`]);
//! 5. by the policy's order ([`super::order`]), then by arrival.
//!
//! Every operation is O(log n). What depends on time or on others' work is not kept up to date but
//! looked at when it comes to the front: a sequence that turns out to be late steps behind, once; a
//! tenant that was charged since steps back, once per charge. So each costs O(log n) more, whenever
//! that is. Where many became late, [`DEMOTIONS_MAX`] step behind at one event and nobody goes
//! before the others have, at wakes that follow at once.
//!
//! **Nobody starves** under demotion: see [`super::late`] for the bound.

mod look;
mod scan;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use super::{late::Guard, share::Share};
use crate::{
    policy::PolicyConfig,
    units::{Micros, Tokens},
};

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

const LANES: [Lane; 3] = [Lane::Replay, Lane::Retry, Lane::Fresh];

/// Most that step behind at one event before one of those behind them goes.
const DEMOTIONS_MAX: usize = 8;

/// The same where who goes first is only asked: the next late one is then taken for one in time.
const DEMOTIONS_ASKED_MAX: usize = 256;

/// Lanes from which may be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenLanes(pub(super) [bool; 3]);

impl OpenLanes {
    pub(super) const fn has(self, lane: Lane) -> bool {
        self.0[lane as usize]
    }
}

/// What a sequence has of its place in the queue. Unique: no two have the same `arrival`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueKey {
    pub(super) lane: Lane,
    pub(super) priority: i32,
    /// Of its tenant.
    pub(super) account: usize,
    /// By the policy's order, the lowest first.
    pub(super) rank: i64,
    /// Counts arrivals of sequences.
    pub(super) arrival: u64,
}

/// Those among whom tenants share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    lane: Lane,
    is_late: bool,
    priority: i32,
}

/// Where one stands in its line: rank, then arrival.
type Stand = (i64, u64);

/// Place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    class: Class,
    account: usize,
    at: Stand,
}

impl Spot {
    const fn of(key: QueueKey, is_late: bool) -> Self {
        let class = Class {
            lane: key.lane,
            is_late,
            priority: key.priority,
        };
        Self {
            class,
            account: key.account,
            at: (key.rank, key.arrival),
        }
    }

    const fn line(self) -> (usize, Class) {
        (self.account, self.class)
    }
}

/// The first sequence of a tenant in a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    class: Class,
    /// The tenant's turn when this was last looked at; its true one is no lower.
    turn: u128,
    rank: i64,
    arrival: u64,
    account: usize,
}

impl Head {
    const fn least(class: Class) -> Self {
        Self {
            class,
            turn: 0,
            rank: i64::MIN,
            arrival: 0,
            account: 0,
        }
    }

    const fn spot(self) -> Spot {
        Spot {
            class: self.class,
            account: self.account,
            at: (self.rank, self.arrival),
        }
    }
}

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Key of the sequence.
    pub(super) sequence: usize,
    /// Tokens that it adds to the work of the queue.
    pub(super) tokens: Tokens,
    /// What they take.
    pub(super) prefill: Micros,
    /// Placed later than this, it misses its target.
    pub(super) start_by: Micros,
}

/// What waits of an account in a class, in order. Small trees stay in the cache where one of all
/// that wait does not.
#[derive(Debug, Default)]
struct Line {
    items: BTreeMap<Stand, Item>,
    /// Where it stands among the heads.
    head: Option<Head>,
}

#[derive(Debug)]
pub(super) struct WaitQueue {
    /// None is empty.
    lines: BTreeMap<(usize, Class), Line>,
    /// Of every line.
    heads: BTreeSet<Head>,
    pub(super) share: Share,
    guard: Guard,
    tokens: u64,
    work_us: u64,
    /// How many wait in each lane, in time and late: most parts are empty, and asked about at every
    /// event.
    counts: [[usize; 2]; LANES.len()],
    demotes: bool,
    /// Who stepped behind at this event.
    demoted: Vec<usize>,
    /// Others at the front are late as well, so that nobody goes at this event any more.
    has_more_late: bool,
    now: Micros,
}

impl WaitQueue {
    pub(super) fn new(policy: &PolicyConfig) -> Self {
        Self {
            lines: BTreeMap::new(),
            heads: BTreeSet::new(),
            share: Share::new(policy),
            guard: Guard::new(policy),
            tokens: 0,
            work_us: 0,
            counts: [[0; 2]; LANES.len()],
            demotes: policy.demote,
            demoted: Vec::new(),
            has_more_late: false,
            now: Micros(0),
        }
    }

    /// Another event.
    pub(super) const fn tick(&mut self, now: Micros) {
        self.now = now;
        self.has_more_late = false;
    }

    /// Adds a sequence that arrived then.
    pub(super) fn push(&mut self, key: QueueKey, item: Item, arrived: Micros) {
        // Who comes back begins with what the one has that goes first.
        let is_back = self.share.waiting(key.account) == 0;
        let least = is_back.then(|| self.least(key.priority)).flatten();
        self.share.waits(key.account, item.tokens, least);
        if key.lane == Lane::Fresh {
            self.guard.add(key, item, arrived);
        }
        self.tokens = self.tokens.saturating_add(u64::from(item.tokens.0));
        self.work_us = self.work_us.saturating_add(item.prefill.0);
        self.put(Spot::of(key, false), item);
    }

    pub(super) fn remove(&mut self, key: QueueKey) {
        let spots = [false, true].map(|is_late| Spot::of(key, is_late));
        let taken = (spots.into_iter()).find_map(|spot| Some((spot, self.take(spot)?)));
        let Some((spot, item)) = taken else { return };
        let is_late = spot.class.is_late;
        self.share
            .waits_no_longer(key.account, item.tokens, is_late);
        self.guard.remove(key);
        self.tokens = self.tokens.saturating_sub(u64::from(item.tokens.0));
        self.work_us = self.work_us.saturating_sub(item.prefill.0);
    }

    fn put(&mut self, spot: Spot, item: Item) {
        let line = self.lines.entry(spot.line()).or_default();
        line.items.insert(spot.at, item);
        *self.count(spot.class) += 1;
        self.refresh(spot.account, spot.class);
    }

    fn take(&mut self, spot: Spot) -> Option<Item> {
        let item = self.lines.get_mut(&spot.line())?.items.remove(&spot.at)?;
        *self.count(spot.class) -= 1;
        self.refresh(spot.account, spot.class);
        Some(item)
    }

    /// How many wait where those of this class do.
    const fn count(&mut self, class: Class) -> &mut usize {
        &mut self.counts[class.lane as usize][class.is_late as usize]
    }

    /// A sequence that was removed got its place.
    pub(super) fn placed(&mut self, key: QueueKey, arrived: Micros, tokens: Tokens) {
        if key.lane == Lane::Fresh {
            self.guard.placed(key, arrived, tokens, self.now);
        }
    }

    /// Service of the tenant that goes first in this priority of those that never ran.
    fn least(&mut self, priority: i32) -> Option<u128> {
        [false, true].into_iter().find_map(|is_late| {
            let class = Class {
                lane: Lane::Fresh,
                is_late,
                priority,
            };
            let first = self.next(class, DEMOTIONS_ASKED_MAX);
            let (head, _) = first.filter(|(head, _)| head.class == class)?;
            Some(self.share.service(head.account))
        })
    }

    /// The head of a line is as it should be.
    fn refresh(&mut self, account: usize, class: Class) {
        let Entry::Occupied(mut line) = self.lines.entry((account, class)) else {
            return;
        };
        let first = line.get().items.first_key_value();
        let wanted = first.map(|(&(rank, arrival), _)| Head {
            class,
            turn: self.share.turn(account),
            rank,
            arrival,
            account,
        });
        let old = std::mem::replace(&mut line.get_mut().head, wanted);
        if wanted.is_none() {
            line.remove();
        }
        if old != wanted {
            if let Some(old) = old {
                self.heads.remove(&old);
            }
            self.heads.extend(wanted);
        }
    }

    /// The first head from this class on, of the same lane and lateness.
    fn head(&mut self, from: Class) -> Option<Head> {
        if *self.count(from) == 0 {
            return None;
        }
        loop {
            // Mostly nobody stands before.
            let first = self.heads.first().filter(|head| head.class >= from);
            let head = *first.or_else(|| self.heads.range(Head::least(from)..).next())?;
            if (head.class.lane, head.class.is_late) != (from.lane, from.is_late) {
                return None;
            }
            if head.turn == self.share.turn(head.account) {
                return Some(head);
            }
            self.refresh(head.account, head.class);
        }
    }

    /// The same, of those that are in time where the class is for those. So many may have stepped
    /// behind at this event.
    fn next(&mut self, from: Class, demoted_max: usize) -> Option<(Head, Item)> {
        loop {
            let head = self.head(from)?;
            let spot = head.spot();
            let item = *self.lines.get(&spot.line())?.items.get(&spot.at)?;
            if !self.is_to_demote(&spot, &item) {
                return Some((head, item));
            }
            if self.demoted.len() >= demoted_max {
                self.has_more_late = true;
                return None;
            }
            self.demote(spot);
        }
    }

    /// It could still meet its target when it was pushed, and cannot any more.
    fn demote(&mut self, spot: Spot) {
        let late = Spot {
            class: Class {
                is_late: true,
                ..spot.class
            },
            ..spot
        };
        if let Some(item) = self.take(spot) {
            self.put(late, item);
            self.share.is_late(spot.account);
            self.demoted.push(item.sequence);
        }
    }

    fn is_to_demote(&self, spot: &Spot, item: &Item) -> bool {
        self.demotes
            && !spot.class.is_late
            && item.start_by < self.now
            && self.demoted.len() < DEMOTIONS_ASKED_MAX
    }

    /// Who waited so long that it goes before all others of its lane.
    fn owed(&self) -> Option<usize> {
        self.guard.owed(self.now)
    }

    /// The sequence that goes next from the lanes that are open. `None` where more step behind
    /// first, too: see [`WaitQueue::has_more_late`].
    pub(super) fn first(&mut self, is_open: impl Fn(Lane) -> bool) -> Option<usize> {
        self.has_more_late = false;
        LANES
            .into_iter()
            .filter(|&lane| is_open(lane))
            .find_map(|lane| self.first_of(lane))
            .filter(|_| !self.has_more_late)
    }

    fn first_of(&mut self, lane: Lane) -> Option<usize> {
        if self.counts[lane as usize] == [0, 0] {
            return None;
        }
        if lane == Lane::Fresh
            && let Some(sequence) = self.owed()
        {
            return Some(sequence);
        }
        for is_late in [false, true] {
            let class = Class {
                lane,
                is_late,
                priority: i32::MIN,
            };
            if let Some((_, item)) = self.next(class, DEMOTIONS_MAX) {
                return Some(item.sequence);
            }
        }
        None
    }
}
