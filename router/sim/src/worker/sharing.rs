//! Which seats hold which kept prefixes. A page of a kept block is owned as long as somebody holds
//! it, and cached then. Called by `worker`, `step` and `handoff`.

use dopd_core::{ids::SlotId, units::Tokens};

use super::{
    Phase, Worker,
    prefix::{chain, pages_of},
    seat::Seat,
};

impl Worker {
    /// The prefixes of a seat's prompt, as far as they are shorter than what it has to compute.
    fn chain_of(&self, seat: &Seat) -> Vec<u64> {
        let request = self.trace.requests.get(seat.request as usize);
        let Some(request) = request.filter(|_| self.spec.has_prefix_cache) else {
            return Vec::new();
        };
        let mut chain = chain(&self.trace, request);
        let fits = |blocks: usize| self.tokens_of(blocks) < seat.prompt;
        while !chain.is_empty() && !fits(chain.len()) {
            chain.pop();
        }
        chain
    }

    fn pages_of_blocks(&self, blocks: usize) -> u32 {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        pages_of(&self.trace, self.spec.page_tokens, blocks)
    }

    fn tokens_of(&self, blocks: usize) -> u32 {
        self.pages_of_blocks(blocks)
            .saturating_mul(self.spec.page_tokens)
    }

    /// A new seat begins with what is kept of its prompt. False: there is no room for the rest.
    pub(super) fn share(&mut self, slot: u32, seat: &mut Seat) -> bool {
        let chain = self.chain_of(seat);
        if !chain.is_empty() {
            let (held, woken) = self.prefixes.hold(&chain);
            self.pages_owned += woken;
            seat.held = held;
            seat.shared_pages = self.pages_of_blocks(held);
        }
        seat.pages = seat.pages.max(seat.shared_pages);
        let own = seat.pages - seat.shared_pages;
        if own > self.pages_free() {
            self.let_go(seat);
            return false;
        }
        self.own(own);
        let tokens = self.tokens_of(seat.held);
        if seat.phase == Phase::Prefill {
            seat.computed = tokens;
            if tokens > 0 {
                self.said.reused.push((SlotId(slot), Tokens(tokens)));
            }
        }
        true
    }

    /// The prompt of a seat is complete: its blocks are kept, as far as nobody else keeps them.
    pub(super) fn keep_prompt(&mut self, slot: u32) {
        if !self.spec.has_prefix_cache {
            return;
        }
        let Some(mut seat) = self.seats.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        let chain = self.chain_of(&seat);
        for (depth, &hash) in (0_u32..).zip(&chain).skip(seat.held) {
            let after = self.pages_of_blocks(seat.held + 1);
            if !self.prefixes.keep(hash, depth, after - seat.shared_pages) {
                break;
            }
            seat.held += 1;
            seat.shared_pages = after;
        }
        self.seats[slot as usize] = Some(seat);
    }

    /// A seat that ends holds nothing any more.
    pub(super) fn let_go(&mut self, seat: &Seat) {
        if seat.held > 0 {
            let mut chain = self.chain_of(seat);
            chain.truncate(seat.held);
            self.pages_owned -= self.prefixes.release(&chain);
        }
    }

    /// Positions of an import that need not travel.
    pub(crate) fn shared_tokens(&self, slot: u32, life: u32) -> u32 {
        self.seat(slot, life)
            .map_or(0, |seat| self.tokens_of(seat.held))
    }
}
