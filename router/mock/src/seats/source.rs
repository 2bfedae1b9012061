//! The sending side of a hand-off: from Send to End.

use bytes::Bytes;
use dopd_router::wire::worker::{Begin, End, Go, Grant, Write, link_frame::Kind};

use super::{
    LinkId, PeerKey, Seats,
    link::{Peer, PeerState},
    types::{Phase, Shipment, Terms},
};
use crate::model::{self, PAGE_BYTES};

/// Payload of one write: small enough for shipments to take turns.
const WRITE_BYTES_MAX: u32 = 128 << 10;

impl Seats {
    /// Ship to the holder of the grant; without one: stay and go on.
    pub(super) fn send(&mut self, slot: u32, grant: Option<Grant>) {
        match self.seat(slot).map(|seat| &seat.phase) {
            None | Some(Phase::Reserved { .. } | Phase::Exposed { .. }) => return,
            Some(_) => self.unship(slot),
        }
        if let Some(grant) = grant {
            self.ship(slot, grant);
        }
    }

    fn ship(&mut self, slot: u32, grant: Grant) {
        let nonce = grant.nonce;
        if self.shipments.contains_key(&nonce) {
            return self.broken(format!("grant {nonce:016x} was sent twice"));
        }
        let mut endpoints = grant.endpoints.into_iter();
        let Some(tcp) = endpoints.find(|endpoint| endpoint.transport == "tcp") else {
            return self.broken(format!("grant {nonce:016x} has no endpoint for tcp"));
        };
        let peer = self.peer_id(PeerKey {
            address: tcp.address,
            worker: grant.worker,
            incarnation: grant.incarnation,
        });
        let Some(seat) = self.seat_mut(slot) else {
            return;
        };
        seat.phase = Phase::Want(Shipment {
            nonce,
            peer,
            first: 0,
            room: 0,
            written: 0,
        });
        self.shipments.insert(nonce, slot);
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        entry.nonces.push(nonce);
        match entry.state {
            PeerState::Up(link) => self.show_ticket(link, nonce),
            PeerState::Down | PeerState::Dialling(_) => self.dial(peer),
        }
    }

    fn peer_id(&mut self, key: PeerKey) -> u64 {
        let known = self.peers.iter().find(|(_, peer)| peer.key == key);
        if let Some((&id, _)) = known {
            return id;
        }
        self.peers_seen += 1;
        let peer = Peer {
            key,
            state: PeerState::Down,
            attempt: 0,
            in_flight: 0,
            nonces: Vec::new(),
        };
        self.peers.insert(self.peers_seen, peer);
        self.peers_seen
    }

    /// WANT -> BEGUN.
    pub(super) fn show_ticket(&mut self, link: u64, nonce: u64) {
        let Some(slot) = self.shipments.get(&nonce).copied() else {
            return;
        };
        if let Some(seat) = self.seat_mut(slot)
            && let Phase::Want(shipment) = seat.phase
        {
            seat.phase = Phase::Begun(shipment);
            self.say(
                LinkId::Out(link),
                Kind::Begin(Begin { nonce }),
                Bytes::new(),
            );
        }
    }

    /// The destination opened its pages: write what is there.
    pub(super) fn go(&mut self, peer: u64, link: u64, go: &Go) {
        let nonce = go.nonce;
        let slot = self.shipments.get(&nonce).copied();
        let seat = slot.and_then(|slot| self.seat_mut(slot));
        if let Some(seat) = seat
            && let Some(shipment) = seat.phase.shipment().copied()
            && shipment.peer == peer
        {
            match seat.phase {
                Phase::Begun(_) => {
                    let first = go.first.min(super::types::count(seat.pages.len()));
                    seat.phase = Phase::Going(Shipment {
                        first,
                        room: first.saturating_add(super::types::count(go.pages.len())),
                        written: first,
                        ..shipment
                    });
                    return self.pump(peer);
                }
                Phase::Going(_) | Phase::Frozen(_) | Phase::Sent(_) => return,
                _ => {}
            }
        }
        // Nobody ships under this ticket (any more): spare the peer the wait for its fence timer.
        self.say_aborted(link, nonce);
    }

    fn say_aborted(&mut self, link: u64, nonce: u64) {
        let end = End {
            nonce,
            ..End::default()
        };
        self.say(LinkId::Out(link), Kind::End(end), Bytes::new());
    }

    /// Forgets the shipment of a seat, which steps again. The destination hears of it if it may be
    /// waiting for data.
    pub(super) fn unship(&mut self, slot: u32) {
        let Some(seat) = self.seat_mut(slot) else {
            return;
        };
        let Some(shipment) = seat.phase.shipment().copied() else {
            return;
        };
        let tell = matches!(seat.phase, Phase::Going(_) | Phase::Frozen(_));
        seat.phase = Phase::Run;
        let link = self.forget(&shipment);
        if let (true, Some(link)) = (tell, link) {
            self.say_aborted(link, shipment.nonce);
        }
    }

    /// Takes a shipment off the books; returns its link if that is up.
    fn forget(&mut self, shipment: &Shipment) -> Option<u64> {
        self.shipments.remove(&shipment.nonce);
        let peer = self.peers.get_mut(&shipment.peer)?;
        peer.nonces.retain(|&nonce| nonce != shipment.nonce);
        match peer.state {
            PeerState::Up(link) => Some(link),
            PeerState::Dialling(_) => None,
            PeerState::Down => {
                if peer.nonces.is_empty() {
                    self.peers.remove(&shipment.peer);
                }
                None
            }
        }
    }

    /// The link of a shipment is gone. WANT waits for the next one; SENT is released by the router
    /// only.
    pub(super) fn ship_lost(&mut self, nonce: u64) {
        let Some(slot) = self.shipments.get(&nonce).copied() else {
            return;
        };
        if let Some(seat) = self.seat_mut(slot)
            && matches!(
                seat.phase,
                Phase::Begun(_) | Phase::Going(_) | Phase::Frozen(_)
            )
        {
            self.unship(slot);
        }
    }

    /// The transport took `bytes`: there is room for more.
    pub(super) fn drained(&mut self, link: u64, bytes: u32) {
        let Some(id) = self.peer_of(link) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.in_flight = peer.in_flight.saturating_sub(bytes);
        }
        self.pump(id);
    }

    /// Writes to every peer what steps have made since the last call.
    pub(super) fn pump_all(&mut self) {
        if self.shipments.is_empty() {
            return;
        }
        let ids: Vec<u64> = self.peers.keys().copied().collect();
        for id in ids {
            self.pump(id);
        }
    }

    /// Writes pages of this peer's shipments, oldest first, as far as its transport has room; ends
    /// those that are done.
    pub(super) fn pump(&mut self, id: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let PeerState::Up(link) = peer.state else {
            return;
        };
        for nonce in peer.nonces.clone() {
            let Some(slot) = self.shipments.get(&nonce).copied() else {
                continue;
            };
            while let Some(pages) = self.next_write(id, slot) {
                self.write_pages(id, link, slot, pages);
            }
            self.end_if_written(link, slot);
        }
    }

    /// Pages of a seat that can be written now; `None` if there are none or the transport is full.
    fn next_write(&self, peer: u64, slot: u32) -> Option<std::ops::Range<u32>> {
        let seat = self.seat(slot)?;
        let (shipment, ready) = match &seat.phase {
            // A page that a step still writes into must not travel before the seat is frozen.
            Phase::Going(shipment) => (shipment, seat.pages_full()),
            Phase::Frozen(shipment) => (shipment, seat.pages_used()),
            _ => return None,
        };
        let room =
            (self.config.in_flight_bytes_max).saturating_sub(self.peers.get(&peer)?.in_flight);
        let most = room.min(WRITE_BYTES_MAX) / PAGE_BYTES;
        let end = ready.min(shipment.room).min(shipment.written + most);
        (end > shipment.written).then_some(shipment.written..end)
    }

    fn write_pages(&mut self, peer: u64, link: u64, slot: u32, range: std::ops::Range<u32>) {
        let Some(seat) = self.by_slot.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let pages = &seat.pages[range.start as usize..range.end as usize];
        let payload = Bytes::from(self.pool.read(pages));
        let (Phase::Going(shipment) | Phase::Frozen(shipment)) = &mut seat.phase else {
            return;
        };
        shipment.written = range.end;
        let write = Write {
            source_pages: Vec::new(),
            nonce: shipment.nonce,
            first: range.start,
            count: range.end - range.start,
        };
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.in_flight += write.count * PAGE_BYTES;
        }
        self.say(LinkId::Out(link), Kind::Write(write), payload);
    }

    /// FROZEN -> SENT once every page was handed over. The payload is a copy, so the page is not
    /// read again, and End follows it on the same connection: contract T3.
    fn end_if_written(&mut self, link: u64, slot: u32) {
        let Some(seat) = self.seat_mut(slot) else {
            return;
        };
        let Phase::Frozen(shipment) = seat.phase else {
            return;
        };
        if shipment.written < seat.pages_used() {
            return;
        }
        seat.phase = Phase::Sent(shipment);
        let pages = seat.pages[shipment.first as usize..shipment.written as usize].to_vec();
        let mut end = End {
            nonce: shipment.nonce,
            ok: true,
            pages: shipment.written,
            pos: seat.pos(),
            tokens_hash: model::tokens_hash(seat.prompt_hash, &seat.answer),
            tokens: seat.answer.clone(),
            checksum: None,
        };
        if let Some(terms) = self.session.filter(Terms::is_checked) {
            end.checksum = Some(model::checksum(terms.check, &self.pool.read(&pages)));
        }
        self.say(LinkId::Out(link), Kind::End(end), Bytes::new());
    }

    /// Step boundary of a GOING seat: freeze if at most `pages_left_max` pages are left to write,
    /// one at least.
    pub(super) fn freeze_if_near(&mut self, slot: u32, pages_left_max: u32) {
        let Some(seat) = self.seat_mut(slot) else {
            return;
        };
        let Phase::Going(shipment) = seat.phase else {
            return;
        };
        if !seat.is_prefilled() {
            return;
        }
        let used = seat.pages_used();
        if used > shipment.room {
            // The destination could not hold it; decoding on is the safe end of this shipment.
            return self.unship(slot);
        }
        if used.saturating_sub(shipment.written) <= pages_left_max.max(1) {
            seat.phase = Phase::Frozen(shipment);
            if let Some(stay) = seat.stay.take() {
                self.residents.leave(stay);
            }
            self.pump(shipment.peer);
        }
    }
}
