//! The page pool: KV memory of one mock worker and who may touch which page.
//!
//! Table "Page" of handoff.md: FREE -> OWNED -> FREE | FENCED -> FREE. The pool checks every
//! transition; a wrong one is a bug of the caller and ends the process. A page remembers whose it
//! was, so that it can be zeroed before another tenant gets it. Called by `seats` only.

use dopd_router::wire::worker::KvScrub;

use crate::model::{CHAIN_START, PAGE_BYTES, PAGE_SIZE};

/// State of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Can be taken.
    Free,
    /// Belongs to one seat.
    Owned,
    /// Belongs to nobody; a peer may still write it.
    Fenced,
}

/// All pages of a worker.
#[derive(Debug)]
pub struct Pool {
    /// KV entries, `PAGE_SIZE` per page. Written by steps and by imports.
    entries: Vec<u64>,
    state: Vec<PageState>,
    /// Tenant of the last owner; pages that were never used are as good as zeroed.
    tenant: Vec<u64>,
    /// Pages that were used and are free, last freed last: it is taken first, which finds a wrong
    /// free soonest.
    returned: Vec<u32>,
    /// Pages from here on were never used; spares building a list of millions at start.
    fresh: u32,
    owned: u32,
    fenced: u32,
}

impl Pool {
    /// A pool of `total` free pages.
    pub fn new(total: u32) -> Self {
        let entries = total as usize * PAGE_SIZE as usize;
        Self {
            entries: vec![0; entries],
            state: vec![PageState::Free; total as usize],
            tenant: vec![0; total as usize],
            returned: Vec::new(),
            fresh: 0,
            owned: 0,
            fenced: 0,
        }
    }

    /// Pages in all.
    pub fn total(&self) -> u32 {
        count(self.state.len())
    }

    /// Pages that can be taken.
    pub fn free(&self) -> u32 {
        self.total() - self.fresh + count(self.returned.len())
    }

    /// Pages of seats, counted by themselves: with the others they make up the total.
    pub fn owned(&self) -> u32 {
        self.owned
    }

    /// Pages that a peer may still write.
    pub fn fenced(&self) -> u32 {
        self.fenced
    }

    /// State of one page.
    pub fn state(&self, page: u32) -> PageState {
        self.state[page as usize]
    }

    /// FREE -> OWNED for `wanted` pages, or `None` if there are not as many. Those that `scrub`
    /// names are zeroed.
    pub fn allocate(&mut self, wanted: u32, tenant: u64, scrub: KvScrub) -> Option<Vec<u32>> {
        if wanted > self.free() {
            return None;
        }
        let reused = self.returned.len().min(wanted as usize);
        let mut pages = self.returned.split_off(self.returned.len() - reused);
        for &page in &pages {
            let is_foreign = self.tenant[page as usize] != tenant;
            if scrub == KvScrub::Always || (scrub == KvScrub::Tenant && is_foreign) {
                self.zero(page);
            }
        }
        let more = wanted - count(reused);
        pages.extend(self.fresh..self.fresh + more);
        self.fresh += more;
        self.owned += wanted;
        for &page in &pages {
            self.turn(page, PageState::Free, PageState::Owned);
            self.tenant[page as usize] = tenant;
        }
        Some(pages)
    }

    fn zero(&mut self, page: u32) {
        let first = page as usize * PAGE_SIZE as usize;
        self.entries[first..first + PAGE_SIZE as usize].fill(0);
    }

    /// OWNED -> FREE.
    pub fn release(&mut self, pages: &[u32]) {
        for &page in pages {
            self.turn(page, PageState::Owned, PageState::Free);
        }
        self.owned -= count(pages.len());
        self.returned.extend_from_slice(pages);
    }

    /// OWNED -> FENCED: the seat is gone, a peer may still write.
    pub fn fence(&mut self, pages: &[u32]) {
        for &page in pages {
            self.turn(page, PageState::Owned, PageState::Fenced);
        }
        self.owned -= count(pages.len());
        self.fenced += count(pages.len());
    }

    /// FENCED -> FREE: nothing can land any more.
    pub fn lift(&mut self, pages: &[u32]) {
        for &page in pages {
            self.turn(page, PageState::Fenced, PageState::Free);
        }
        self.fenced -= count(pages.len());
        self.returned.extend_from_slice(pages);
    }

    fn turn(&mut self, page: u32, from: PageState, to: PageState) {
        let state = &mut self.state[page as usize];
        assert_eq!(*state, from, "page {page} cannot become {to:?}");
        *state = to;
    }

    /// KV entry of position `position` of a sequence with these pages; before position 0 stands the
    /// chain's start.
    pub fn entry_before(&self, pages: &[u32], position: u32) -> u64 {
        match position.checked_sub(1) {
            None => CHAIN_START,
            Some(last) => self.entries[index(pages, last)],
        }
    }

    /// KV entry of a position, for those who look from outside.
    pub fn entry(&self, pages: &[u32], position: u32) -> u64 {
        self.entries[index(pages, position)]
    }

    /// Writes the KV entry of a position.
    pub fn set_entry(&mut self, pages: &[u32], position: u32, entry: u64) {
        self.entries[index(pages, position)] = entry;
    }

    /// Bytes of whole pages, one after another, entries little endian.
    pub fn read(&self, pages: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(pages.len() * PAGE_BYTES as usize);
        for &page in pages {
            let first = page as usize * PAGE_SIZE as usize;
            for entry in &self.entries[first..first + PAGE_SIZE as usize] {
                bytes.extend_from_slice(&entry.to_le_bytes());
            }
        }
        bytes
    }

    /// Overwrites one page; `bytes` are `PAGE_BYTES` long.
    pub fn write(&mut self, page: u32, bytes: &[u8]) {
        let first = page as usize * PAGE_SIZE as usize;
        let entries = &mut self.entries[first..first + PAGE_SIZE as usize];
        for (entry, word) in entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *entry = u64::from_le_bytes(*word);
        }
    }
}

/// Where the entry of a sequence's position lies.
fn index(pages: &[u32], position: u32) -> usize {
    let page = pages[(position / PAGE_SIZE) as usize] as usize;
    page * PAGE_SIZE as usize + (position % PAGE_SIZE) as usize
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "page counts are u32 from the start"
)]
fn count(len: usize) -> u32 {
    len as u32
}
