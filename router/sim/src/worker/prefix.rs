//! Prefixes that a worker keeps: blocks of the trace, shared, counted, the least recently used
//! evicted first, the end of a prompt before its beginning.
//!
//! A block is kept from the moment in which the prompt that it belongs to is computed or has
//! arrived, whoever holds it; it may be evicted once nobody does. Called by `worker`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use dopd_core::request::{PrefixMark, marked_pages};

use crate::scenario::{Trace, TraceRequest};

/// One block.
#[derive(Clone, Copy, Debug)]
struct Kept {
    pages: u32,
    depth: u32,
    /// Seats that hold it.
    holders: u32,
    /// Counts uses.
    used: u64,
}

/// All blocks of a worker.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    kept: BTreeMap<u64, Kept>,
    /// Those that nobody holds, the first to go first.
    idle: BTreeSet<(u64, Reverse<u32>, u64)>,
    uses: u64,
    /// Pages of those that nobody holds.
    pub(super) pages_idle: u32,
    /// Not yet told.
    pub(super) stored: Vec<u64>,
    pub(super) evicted: Vec<u64>,
}

impl Prefixes {
    /// Holds the longest kept beginning of this chain; returns how many blocks, and how many of
    /// their pages nobody held before.
    pub(super) fn hold(&mut self, chain: &[u64]) -> (usize, u32) {
        self.uses += 1;
        let mut woken = 0;
        let held = chain.iter().take_while(|hash| {
            let Some(kept) = self.kept.get_mut(hash) else {
                return false;
            };
            if kept.holders == 0 {
                self.idle.remove(&(kept.used, Reverse(kept.depth), **hash));
                woken += kept.pages;
            }
            kept.holders += 1;
            kept.used = self.uses;
            true
        });
        let count = held.count();
        self.pages_idle -= woken;
        (count, woken)
    }

    /// A seat keeps one more block, and holds it. False: somebody keeps the same already.
    pub(super) fn keep(&mut self, hash: u64, depth: u32, pages: u32) -> bool {
        if self.kept.contains_key(&hash) {
            return false;
        }
        let kept = Kept {
            pages,
            depth,
            holders: 1,
            used: self.uses,
        };
        self.kept.insert(hash, kept);
        self.stored.push(hash);
        true
    }

    /// A seat lets go; returns the pages that nobody holds any more.
    pub(super) fn release(&mut self, chain: &[u64]) -> u32 {
        self.uses += 1;
        let mut idle = 0;
        for hash in chain {
            let Some(kept) = self.kept.get_mut(hash) else {
                continue;
            };
            kept.holders -= 1;
            kept.used = self.uses;
            if kept.holders == 0 {
                self.idle.insert((kept.used, Reverse(kept.depth), *hash));
                idle += kept.pages;
            }
        }
        self.pages_idle += idle;
        idle
    }

    /// Gives up blocks that nobody holds, until so many pages are free again or none is left.
    pub(super) fn evict(&mut self, pages: u32) {
        let mut free = 0;
        while free < pages
            && let Some((_, _, hash)) = self.idle.pop_first()
        {
            if let Some(kept) = self.kept.remove(&hash) {
                free += kept.pages;
                self.pages_idle -= kept.pages;
                // Nobody was told of it yet, or everybody.
                match self.stored.iter().position(|&stored| stored == hash) {
                    Some(place) => drop(self.stored.remove(place)),
                    None => self.evicted.push(hash),
                }
            }
        }
    }
}

/// Hashes of a request's prefixes, block by block: those of its tenant alone.
pub(super) fn chain(trace: &Trace, request: &TraceRequest) -> Vec<u64> {
    let blocks = request.prompt_tokens.checked_div(trace.block_tokens);
    let mut hash = mix(u64::from(request.tenant) ^ 0x6b76);
    let blocks = request.blocks.iter().take(blocks.unwrap_or(0) as usize);
    let next = |block: &u64| {
        hash = mix(hash ^ mix(*block));
        hash
    };
    blocks.map(next).collect()
}

/// Pages that so many blocks fill.
pub(super) const fn pages_of(trace: &Trace, page_tokens: u32, blocks: u32) -> u32 {
    blocks.saturating_mul(trace.block_tokens) / page_tokens
}

/// What the brain is told of a request's prefixes, marked as the router marks pages.
pub(crate) fn marks(trace: &Trace, request: &TraceRequest, page_tokens: u32) -> Vec<PrefixMark> {
    let chain = chain(trace, request);
    let mark = |blocks: usize| {
        let hash = *chain.get(blocks.checked_sub(1)?)?;
        let pages = pages_of(trace, page_tokens, u32::try_from(blocks).ok()?);
        Some(PrefixMark { pages, hash })
    };
    marked_pages(chain.len()).filter_map(mark).collect()
}

/// A bijection that spreads numbers (splitmix64).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_its_end_before_its_beginning() {
        let mut prefixes = Prefixes::default();
        for (hash, depth) in [(1, 0), (2, 1), (3, 2), (9, 0)] {
            assert!(prefixes.keep(hash, depth, 4));
        }
        assert!(!prefixes.keep(1, 0, 4));
        assert_eq!(prefixes.release(&[1, 2, 3]), 12);
        assert_eq!(prefixes.release(&[9]), 4);
        prefixes.stored.clear();
        prefixes.evict(5);
        assert_eq!(
            (prefixes.evicted.as_slice(), prefixes.pages_idle),
            (&[3, 2][..], 8)
        );
        assert_eq!(prefixes.hold(&[1, 2]), (1, 4));
        // Who is held stays.
        prefixes.evict(100);
        assert_eq!(
            (prefixes.evicted.as_slice(), prefixes.pages_idle),
            (&[3, 2, 9][..], 0)
        );
    }
}
