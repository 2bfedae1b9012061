//! Which worker holds which prefix: an index of what workers say that they keep, for placing.
//!
//! An estimate: a worker finds out by itself what it has. Bounded for the whole fleet. Where room
//! is needed, entries of sessions that ended go first, then of that which has most, what it told
//! longest ago: however wildly one stores, each of n keeps an n-th. Fed by `report`, asked by
//! `place`. A session that ended is forgotten at once, its entries leave when room is needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::SessionId,
    request::PrefixMark,
    units::{Pages, Tokens},
};

/// Pages over all workers: 8 million tokens of 16 a page, about 40 MB.
pub(super) const PAGES_MAX: usize = 1 << 19;

/// Most workers that [`Prefixes::best`] names.
pub(super) const BEST_MAX: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// When it was told. Of sessions that ended, too, until room is needed.
    told: BTreeMap<(u64, SessionId), u64>,
    /// The same by session and age.
    by_age: BTreeMap<(SessionId, u64), u64>,
    /// Sessions that live and told of anything, and those that ended and have entries left.
    held: BTreeMap<SessionId, Held>,
    /// Those with entries: who gives one up first is last.
    gives: BTreeSet<(Held, SessionId)>,
    /// Ages that were given.
    ages: u64,
    /// 0 stands for [`PAGES_MAX`].
    pages_max: usize,
}

/// What is remembered of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    is_over: bool,
    pages: usize,
}

impl Prefixes {
    /// A report's columns. No prefix is in both.
    pub(super) fn reported(&mut self, session: SessionId, stored: &[u64], evicted: &[u64]) {
        let known = self.held.get(&session).copied();
        if stored.is_empty() && (evicted.is_empty() || known.is_none()) {
            return;
        }
        let mut held = known.unwrap_or_default();
        for &hash in evicted {
            if let Some(age) = self.told.remove(&(hash, session)) {
                self.by_age.remove(&(session, age));
                held.pages -= 1;
            }
        }
        // Backwards, so that the end of a prompt is forgotten before its beginning.
        for &hash in stored.iter().rev() {
            self.ages += 1;
            match self.told.insert((hash, session), self.ages) {
                Some(old) => drop(self.by_age.remove(&(session, old))),
                None => held.pages += 1,
            }
            self.by_age.insert((session, self.ages), hash);
        }
        held.is_over &= stored.is_empty();
        self.hold(session, held);
        self.make_room();
    }

    /// The session ended.
    pub(super) fn forget(&mut self, session: SessionId) {
        if let Some(&held) = self.held.get(&session) {
            let is_over = true;
            self.hold(session, Held { is_over, ..held });
        }
        if self.held.values().all(|held| held.is_over) {
            self.told.clear();
            self.by_age.clear();
            self.held.clear();
            self.gives.clear();
        }
    }

    fn hold(&mut self, session: SessionId, held: Held) {
        if let Some(old) = self.held.insert(session, held) {
            self.gives.remove(&(old, session));
        }
        if held.pages > 0 {
            self.gives.insert((held, session));
        } else if held.is_over {
            self.held.remove(&session);
        }
    }

    fn make_room(&mut self) {
        let pages_max = match self.pages_max {
            0 => PAGES_MAX,
            bound => bound,
        };
        while self.told.len() > pages_max {
            let Some(&(held, session)) = self.gives.last() else {
                return;
            };
            let mut of_session = self.by_age.range((session, 0)..=(session, u64::MAX));
            let Some((&(_, age), &hash)) = of_session.next() else {
                return;
            };
            self.by_age.remove(&(session, age));
            self.told.remove(&(hash, session));
            let pages = held.pages - 1;
            self.hold(session, Held { pages, ..held });
        }
    }

    /// Tokens of the prompt that a worker need not compute: up to the longest mark that it holds.
    pub(super) fn cached_tokens(
        &self,
        session: SessionId,
        page_size: u32,
        marks: &[PrefixMark],
    ) -> Tokens {
        // Whoever holds a prefix holds the shorter ones: pages are kept from the first on, and
        // evicted from the last on.
        let held = marks.partition_point(|mark| self.told.contains_key(&(mark.hash, session)));
        let pages = held
            .checked_sub(1)
            .and_then(|last| marks.get(last))
            .map_or(0, |mark| mark.pages);
        Tokens(pages.saturating_mul(page_size))
    }

    /// Workers that hold the longest of these prefixes that anybody holds, and its pages. At most
    /// [`BEST_MAX`], in the order of their sessions.
    pub(super) fn best(&self, marks: &[PrefixMark]) -> (Pages, Vec<SessionId>) {
        let held = marks.partition_point(|mark| self.holders(mark.hash).next().is_some());
        let Some(mark) = held.checked_sub(1).and_then(|last| marks.get(last)) else {
            return (Pages(0), Vec::new());
        };
        let holders = self.holders(mark.hash).take(BEST_MAX).collect();
        (Pages(mark.pages), holders)
    }

    /// Entries, those of ended sessions included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.told.len()
    }

    fn holders(&self, hash: u64) -> impl Iterator<Item = SessionId> {
        self.told
            .range((hash, SessionId(0))..=(hash, SessionId(u64::MAX)))
            .map(|(&(_, session), _)| session)
            .filter(|session| self.held.get(session).is_some_and(|held| !held.is_over))
    }
}

#[cfg(test)]
mod tests;
