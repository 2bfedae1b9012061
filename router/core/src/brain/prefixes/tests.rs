//! The index against a list that remembers everything that was told, in order.

use proptest::prelude::*;

use super::Prefixes;
use crate::{ids::SessionId, request::PrefixMark, units::Tokens};

const PAGE_SIZE: u32 = 16;
const SESSIONS: u64 = 4;
const HASHES: u64 = 24;

/// What was told, oldest first; sessions that live.
#[derive(Default)]
struct Naive {
    told: Vec<(u64, u64)>,
    sessions: Vec<u64>,
    pages_max: usize,
}

impl Naive {
    fn reported(&mut self, session: u64, stored: &[u64], evicted: &[u64]) {
        self.told
            .retain(|&(hash, of)| of != session || !evicted.contains(&hash));
        if !stored.is_empty() && !self.sessions.contains(&session) {
            self.sessions.push(session);
        }
        for &hash in stored.iter().rev() {
            self.told.retain(|&entry| entry != (hash, session));
            self.told.push((hash, session));
        }
        while self.told.len() > self.pages_max {
            let count = |session| self.told.iter().filter(|entry| entry.1 == session).count();
            let gives = |session| (!self.sessions.contains(&session), count(session), session);
            let first = (0..SESSIONS)
                .filter(|&of| count(of) > 0)
                .max_by_key(|&of| gives(of));
            let first = self.told.iter().position(|entry| Some(entry.1) == first);
            self.told.remove(first.unwrap_or_default());
        }
    }

    fn forget(&mut self, session: u64) {
        self.sessions.retain(|&of| of != session);
        if self.sessions.is_empty() {
            self.told.clear();
        }
    }

    fn holds(&self, hash: u64, session: u64) -> bool {
        self.told.contains(&(hash, session))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Report(u64, Vec<u64>, Vec<u64>),
    Forget(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let hashes = || prop::collection::btree_set(0..HASHES, 0..6);
    prop_oneof![
        9 => (0..SESSIONS, hashes(), hashes()).prop_map(|(session, stored, evicted)| {
            let evicted = evicted.difference(&stored).copied().collect();
            Op::Report(session, stored.into_iter().collect(), evicted)
        }),
        1 => (0..SESSIONS).prop_map(Op::Forget),
    ]
}

fn marks(hashes: &[u64]) -> Vec<PrefixMark> {
    hashes
        .iter()
        .zip(1..)
        .map(|(&hash, pages)| PrefixMark { pages, hash })
        .collect()
}

proptest! {
    #[test]
    fn index_is_the_list(ops in prop::collection::vec(op(), 1..60), pages_max in 1..40_usize) {
        let mut index = Prefixes { pages_max, ..Prefixes::default() };
        let mut naive = Naive { pages_max, ..Naive::default() };
        for op in ops {
            match op {
                Op::Report(session, stored, evicted) => {
                    index.reported(SessionId(session), &stored, &evicted);
                    naive.reported(session, &stored, &evicted);
                }
                Op::Forget(session) => {
                    index.forget(SessionId(session));
                    naive.forget(session);
                }
            }
            prop_assert!(index.len() <= pages_max);
            prop_assert_eq!(index.len(), naive.told.len());
            prop_assert_eq!(index.by_age.len(), naive.told.len());
            for hash in 0..HASHES {
                let one = marks(&[hash]);
                for session in 0..SESSIONS {
                    let tokens = index.cached_tokens(SessionId(session), PAGE_SIZE, &one);
                    let expected = if naive.holds(hash, session) { PAGE_SIZE } else { 0 };
                    prop_assert_eq!(tokens, Tokens(expected));
                }
                let mut holders: Vec<u64> = naive.sessions.clone();
                holders.retain(|&session| naive.holds(hash, session));
                holders.sort_unstable();
                let best: Vec<u64> = index.best(&one).1.iter().map(|session| session.0).collect();
                prop_assert_eq!(best, holders);
            }
        }
    }

    #[test]
    fn longest_mark_of_a_chain_counts(lens in prop::collection::vec(0..40_usize, 1..5)) {
        let chain: Vec<u64> = (100..140).collect();
        let mut index = Prefixes::default();
        for (session, &len) in (0..).zip(&lens) {
            index.reported(SessionId(session), &chain[..len], &[]);
        }
        let marks = marks(&chain);
        for (session, &len) in (0..).zip(&lens) {
            let tokens = index.cached_tokens(SessionId(session), PAGE_SIZE, &marks);
            prop_assert_eq!(tokens.0 as usize, len * PAGE_SIZE as usize);
        }
        let longest = lens.iter().copied().max().unwrap_or_default();
        let (pages, who) = index.best(&marks);
        prop_assert_eq!(pages.0 as usize, longest);
        prop_assert_eq!(who.is_empty(), longest == 0);
        let expected = (0..).zip(&lens).filter(|&(_, &len)| len == longest && len > 0);
        prop_assert_eq!(who, expected.map(|(session, _)| SessionId(session)).collect::<Vec<_>>());
    }
}

#[test]
fn who_stores_wildly_leaves_the_others_their_share() {
    let mut index = Prefixes {
        pages_max: 12,
        ..Prefixes::default()
    };
    let (one, two) = (SessionId(1), SessionId(2));
    index.reported(one, &[1, 2, 3, 4], &[]);
    index.reported(two, &[5, 6], &[]);
    let wild: Vec<u64> = (100..200).collect();
    index.reported(SessionId(3), &wild, &[]);
    assert_eq!(index.len(), 12);
    let cached = |index: &Prefixes, session, hashes: &[u64]| {
        index.cached_tokens(session, 1, &marks(hashes)).0
    };
    assert_eq!(cached(&index, one, &[1, 2, 3, 4]), 4);
    assert_eq!(cached(&index, two, &[5, 6]), 2);
    assert_eq!(cached(&index, SessionId(3), &wild), 6);
    // Room for more is made by who has most, and by who is gone before all.
    index.reported(two, &[7, 8], &[]);
    assert_eq!(cached(&index, SessionId(3), &wild), 4);
    index.forget(one);
    index.reported(two, &[9, 10], &[]);
    assert_eq!(cached(&index, SessionId(3), &wild), 4);
    assert_eq!(cached(&index, two, &[5, 6, 7, 8, 9, 10]), 6);
}

#[test]
fn bound_forgets_the_end_of_a_prompt_before_its_beginning() {
    let mut index = Prefixes {
        pages_max: 3,
        ..Prefixes::default()
    };
    index.reported(SessionId(1), &[1, 2, 3, 4, 5], &[]);
    let tokens = index.cached_tokens(SessionId(1), PAGE_SIZE, &marks(&[1, 2, 3, 4, 5]));
    assert_eq!(tokens, Tokens(3 * PAGE_SIZE));
}
