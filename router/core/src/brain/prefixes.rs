//! Which worker holds which prefix: an index of what workers say that they keep, for placing.
//!
//! An estimate: a worker finds out by itself what it has. Bounded for the whole fleet; what was
//! told longest ago is forgotten first. Fed by `report`, asked by `place`. A session that ended is
//! forgotten at once, its entries leave with age.

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
    /// When it was told. Of sessions that ended, too, until they are the oldest.
    told: BTreeMap<(u64, SessionId), u64>,
    /// The same by age.
    by_age: BTreeMap<u64, (u64, SessionId)>,
    /// Sessions that live and told of anything.
    sessions: BTreeSet<SessionId>,
    /// Ages that were given.
    ages: u64,
    /// 0 stands for [`PAGES_MAX`].
    pages_max: usize,
}

impl Prefixes {
    /// A report's columns. No prefix is in both.
    pub(super) fn reported(&mut self, session: SessionId, stored: &[u64], evicted: &[u64]) {
        for &hash in evicted {
            if let Some(age) = self.told.remove(&(hash, session)) {
                self.by_age.remove(&age);
            }
        }
        if !stored.is_empty() {
            self.sessions.insert(session);
        }
        // Backwards, so that the end of a prompt is forgotten before its beginning.
        for &hash in stored.iter().rev() {
            self.tell(hash, session);
        }
    }

    /// The session ended.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        if self.sessions.is_empty() {
            self.told.clear();
            self.by_age.clear();
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
            .filter(|session| self.sessions.contains(session))
    }

    fn tell(&mut self, hash: u64, session: SessionId) {
        self.ages += 1;
        if let Some(old) = self.told.insert((hash, session), self.ages) {
            self.by_age.remove(&old);
        }
        self.by_age.insert(self.ages, (hash, session));
        let pages_max = match self.pages_max {
            0 => PAGES_MAX,
            bound => bound,
        };
        while self.told.len() > pages_max {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                return;
            };
            self.told.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
