//! The receiving side of a hand-off: Begin, Write, End at an import seat or at a fence.

use bytes::Bytes;
use dopd_router::wire::worker as wire;

use super::{
    LinkId, Seats,
    types::{AbortReason, Phase, Seat, Terms, count},
};
use crate::model::{self, PAGE_BYTES, PAGE_SIZE};

impl Seats {
    /// The ticket is shown: bind the link, open the pages to it.
    pub(super) fn begin(&mut self, link: u64, nonce: u64) {
        // Unknown, used by another link or closed: a second use of a grant ends here.
        let Some(slot) = self.imports.get(&nonce).copied() else {
            return;
        };
        let Some(seat) = self.seat_mut(slot) else {
            return;
        };
        if !matches!(seat.phase, Phase::Reserved { .. }) {
            return;
        }
        seat.phase = Phase::Exposed {
            nonce,
            link,
            written: vec![false; seat.pages.len()],
        };
        let pages = seat.pages.clone();
        // No prefix cache here: all pages are to be written, whatever `Import.prefix` says.
        let go = wire::link_frame::Kind::Go(wire::Go {
            nonce,
            pages,
            first: 0,
        });
        self.say(LinkId::In(link), go, Bytes::new());
    }

    /// Page bytes landed: on an exposed seat they count, on a fence they are harmless, elsewhere
    /// they break the link.
    pub(super) fn write(&mut self, link: u64, write: &wire::Write, payload: &[u8]) {
        let first = write.first as usize;
        let end = first.saturating_add(write.count as usize);
        let exact = payload.len() == write.count as usize * PAGE_BYTES as usize;
        let fits = self
            .writable(link, write.nonce)
            .is_some_and(|all| exact && end <= all.len());
        if !fits {
            let why = format!(
                "write of pages {first}..{end} ({} bytes) under nonce {:016x}: not exposed",
                payload.len(),
                write.nonce
            );
            return self.abort_in(link, AbortReason::Protocol(why));
        }
        if self.is_written(write.nonce, first..end) {
            let why = format!("second write of pages {first}..{end}");
            return self.abort_in(link, AbortReason::Protocol(why));
        }
        let Some(pages) = self.writable(link, write.nonce) else {
            return;
        };
        let pages = pages[first..end].to_vec();
        for (&page, bytes) in pages.iter().zip(payload.chunks_exact(PAGE_BYTES as usize)) {
            self.pool.write(page, bytes);
        }
        if let Some(slot) = self.imports.get(&write.nonce).copied()
            && let Some(seat) = self.seat_mut(slot)
            && let Phase::Exposed { written, .. } = &mut seat.phase
        {
            written[first..end].fill(true);
        }
    }

    /// One of these pages of an exposed seat has landed already: no transport writes twice (T2).
    fn is_written(&self, nonce: u64, range: std::ops::Range<usize>) -> bool {
        let slot = self.imports.get(&nonce).copied();
        let phase = slot
            .and_then(|slot| self.seat(slot))
            .map(|seat| &seat.phase);
        match phase {
            Some(Phase::Exposed { written, .. }) => written[range].contains(&true),
            _ => false,
        }
    }

    /// Pages that this link may write under this nonce: of an exposed seat or a fence.
    fn writable(&self, link: u64, nonce: u64) -> Option<&[u32]> {
        if let Some(fence) = self.fences.get(&nonce) {
            return (fence.link == link).then_some(&fence.pages);
        }
        let seat = self.seat(self.imports.get(&nonce).copied()?)?;
        match &seat.phase {
            Phase::Exposed { link: bound, .. } if *bound == link => Some(&seat.pages),
            _ => None,
        }
    }

    /// The last word of a source: after it nothing is written under this nonce.
    pub(super) fn end(&mut self, link: u64, end: wire::End) {
        if self
            .fences
            .get(&end.nonce)
            .is_some_and(|fence| fence.link == link)
        {
            if let Some(fence) = self.fences.remove(&end.nonce) {
                self.pool.lift(&fence.pages);
                self.is_dirty = true;
            }
            return;
        }
        let Some(slot) = self.imports.get(&end.nonce).copied() else {
            return;
        };
        let model_len_max = self.config.model_len_max;
        let Some(seat) = self.seat(slot) else {
            return;
        };
        match &seat.phase {
            Phase::Exposed { link: bound, .. } if *bound == link => {}
            _ => return,
        }
        if !end.ok {
            return self.lose_import(slot, "the source gave up");
        }
        let checked = check_arrival(seat, &end, model_len_max)
            .and_then(|()| self.check_pages(&seat.pages, &end));
        match checked {
            Ok(()) => self.arrive(slot, end),
            Err(why) => self.lose_import(slot, &why),
        }
    }

    /// Compares what landed with what the source sent, if the router wants that.
    fn check_pages(&self, pages: &[u32], end: &wire::End) -> Result<(), String> {
        let Some(terms) = self.session.filter(Terms::is_checked) else {
            return Ok(());
        };
        let Some(theirs) = end.checksum else {
            return Err("no checksum came, and this router wants the KV checked".to_owned());
        };
        let ours = model::checksum(terms.check, &self.pool.read(&pages[..end.pages as usize]));
        if ours != theirs {
            let count = end.pages;
            return Err(format!(
                "checksum {ours:#018x} over {count} pages, the source says {theirs:#018x} over \
                 {count}: the KV was damaged on its way"
            ));
        }
        Ok(())
    }

    fn arrive(&mut self, slot: u32, end: wire::End) {
        self.imports.remove(&end.nonce);
        let Some(seat) = self.seat_mut(slot) else {
            return;
        };
        seat.phase = Phase::Run;
        seat.computed = seat.prompt_tokens + end.pos - 1;
        let (life, tail) = (seat.life, end.tokens[seat.have as usize..].to_vec());
        seat.answer = end.tokens;
        self.active.push((slot, life));
        self.columns.arrived_slots.push(slot);
        self.columns.arrived_pos.push(end.pos);
        self.columns.arrived_tail_lens.push(count(tail.len()));
        self.columns.arrived_tails.extend(tail);
        self.is_dirty = true;
    }
}

/// Whether everything that End announces is here and is this request's.
fn check_arrival(seat: &Seat, end: &wire::End, model_len_max: u32) -> Result<(), String> {
    let Phase::Exposed { written, .. } = &seat.phase else {
        return Err("not exposed".to_owned());
    };
    let length = seat.prompt_tokens.saturating_add(end.pos);
    if end.pos == 0 || end.pos < seat.have || length > model_len_max {
        return Err(format!("{} answer tokens, {} known", end.pos, seat.have));
    }
    if end.tokens.len() != end.pos as usize {
        return Err(format!("{} tokens for pos {}", end.tokens.len(), end.pos));
    }
    let needed = (length - 1).div_ceil(PAGE_SIZE);
    let landed = count(written.iter().filter(|&&page| page).count());
    let in_order = written.iter().take(needed as usize).all(|&page| page);
    if end.pages != needed || landed != needed || !in_order {
        let told = end.pages;
        return Err(format!(
            "{landed} pages landed, {told} announced, {needed} needed"
        ));
    }
    if model::tokens_hash(seat.prompt_hash, &end.tokens) != end.tokens_hash {
        return Err("tokens of another request".to_owned());
    }
    Ok(())
}
