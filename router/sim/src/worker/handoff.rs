//! A hand-off: from Send to the last byte, and what arrives.
//!
//! Each worker sends one thing after the other, at the bandwidth of its timings. Positions are
//! handed to the link at the step boundary that completes them, so all but the last chunk of a
//! prompt travels while later ones are computed. A source makes tokens until what is left takes
//! less than a decode step; then it freezes, and its last byte lands the fixed time of a hand-off
//! after it has left. The fixed time keeps nobody else from sending.

use dopd_core::{
    event::CloseReason,
    ids::SlotId,
    step::StepWork,
    units::{Micros, Tokens},
};

use super::{
    Worker,
    seat::{Phase, SeatRef, Shipment},
};

/// The end of a hand-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Landing {
    pub(crate) at: Micros,
    pub(crate) from: SeatRef,
    pub(crate) to: SeatRef,
    /// Answer tokens made.
    pub(crate) pos: u32,
}

impl Worker {
    pub(super) fn send(&mut self, slot: u32, to: Option<SeatRef>, skip: u32) {
        let Some(seat) = self.seats.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        if seat.phase == Phase::Reserved {
            return;
        }
        if seat.phase == Phase::Frozen {
            seat.phase = Phase::Joining;
            self.joining.push(slot);
        }
        seat.shipment = to.map(|to| Shipment {
            to,
            written: skip,
            written_at: Micros(0),
        });
        self.shipping.retain(|&other| other != slot);
        if to.is_some() && seat.phase != Phase::Prefill {
            self.shipping.push(slot);
        }
    }

    /// Hands the positions that are complete to the link.
    pub(super) fn write(&mut self, now: Micros, slot: u32) {
        let Some(seat) = self.seats.get(slot as usize).and_then(Option::as_ref) else {
            return;
        };
        let Some(mut shipment) = seat.shipment else {
            return;
        };
        let computed = self.computed(seat);
        let tokens = u64::from(computed.saturating_sub(shipment.written));
        let bytes = tokens.saturating_mul(self.spec.kv_bytes_per_token);
        let timings = &self.spec.timings;
        let us = Micros(timings.handoff_us(bytes).0 - timings.handoff_us(0).0);
        self.link_free = self.link_free.max(now).plus(us);
        self.outcome.handoff_bytes += bytes;
        shipment.written = shipment.written.max(computed);
        shipment.written_at = self.link_free;
        if let Some(seat) = self.seat_mut(slot) {
            seat.shipment = Some(shipment);
        }
    }

    /// Step boundary of those that decode while their pages travel.
    pub(super) fn freeze_ready(&mut self, now: Micros) {
        if self.shipping.is_empty() {
            return;
        }
        let mut shipping = std::mem::take(&mut self.shipping);
        shipping.retain(|&slot| {
            self.write(now, slot);
            self.ships_on(now, slot)
        });
        self.shipping = shipping;
    }

    /// Freezes a seat that has little left to send; else it decodes on while its pages travel.
    pub(super) fn ships_on(&mut self, now: Micros, slot: u32) -> bool {
        let Some(seat) = self.seats.get(slot as usize).and_then(Option::as_ref) else {
            return false;
        };
        let Some(shipment) = seat.shipment else {
            return false;
        };
        let is_member = u32::from(seat.phase != Phase::Decode);
        let decode = self.real_us(StepWork::decode(
            self.decoding.seqs + is_member,
            self.decoding.context + u64::from(is_member) * u64::from(seat.computed),
        ));
        if shipment.written_at.since(now).0 > decode {
            return true;
        }
        let Some(mut seat) = self.seats.get_mut(slot as usize).and_then(Option::take) else {
            return false;
        };
        match seat.phase {
            Phase::Decode => self.leave(&mut seat),
            _ => self.joining.retain(|&other| other != slot),
        }
        seat.phase = Phase::Frozen;
        let from = SeatRef {
            worker: self.index,
            slot,
            life: seat.life,
        };
        self.landings.push(Landing {
            at: shipment
                .written_at
                .max(now)
                .plus(self.spec.timings.handoff_us(0)),
            from,
            to: shipment.to,
            pos: seat.pos,
        });
        self.seats[slot as usize] = Some(seat);
        false
    }

    /// The seat still ships what this is the end of.
    pub(crate) fn has_sent(&self, landing: &Landing) -> bool {
        self.seat(landing.from.slot, landing.from.life)
            .is_some_and(|seat| {
                let to = seat.shipment.map(|shipment| shipment.to);
                seat.phase == Phase::Frozen && to == Some(landing.to)
            })
    }

    /// The last byte of a hand-off is here, or its source gave up.
    pub(crate) fn land(&mut self, now: Micros, landing: &Landing, is_whole: bool) {
        self.settle(now);
        let slot = landing.to.slot;
        let seat = self.seat(slot, landing.to.life);
        let Some(seat) = seat.filter(|seat| seat.phase == Phase::Reserved) else {
            return;
        };
        if !is_whole {
            return self.close(slot, CloseReason::Lost);
        }
        let computed = seat.prompt + landing.pos - 1;
        let wanted = computed.div_ceil(self.spec.page_tokens);
        let more = wanted.saturating_sub(seat.pages);
        if more > self.pages_free() {
            return self.close(slot, CloseReason::Preempted);
        }
        self.own(more);
        if let Some(seat) = self.seat_mut(slot) {
            seat.pages += more;
            seat.computed = computed;
            (seat.pos, seat.told) = (landing.pos, landing.pos);
            seat.phase = Phase::Joining;
        }
        self.keep_prompt(slot);
        self.joining.push(slot);
        self.said.arrived.push((SlotId(slot), Tokens(landing.pos)));
        self.said.is_urgent = true;
    }
}
