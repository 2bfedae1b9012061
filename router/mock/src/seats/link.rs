//! Link ends: up, down, what travels on them; and fences, which stand and fall with an incoming
//! link.

use std::collections::BTreeSet;

use bytes::Bytes;
use dopd_core::units::Micros;
use dopd_router::wire::worker::{LinkState, Report, link_frame::Kind};

use super::{
    Effect, LinkId, LinkMessage, PeerKey, Seats,
    types::{AbortReason, Phase},
};

/// Age of the oldest fence at which its link is aborted. A live source answers a close within a
/// step; a dead one never.
pub(super) const FENCE_TIMEOUT: Micros = Micros::from_millis(500);

/// Pages that outlived their import: a peer may still write them.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    pub(super) pages: Vec<u32>,
    /// The only link on which a write can come.
    pub(super) link: u64,
    pub(super) since: Micros,
}

/// A worker that we ship to, and our end of the link to it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) key: PeerKey,
    pub(super) state: PeerState,
    /// Failed dials since it was last up.
    pub(super) attempt: u32,
    /// Payload bytes said and not yet drained.
    pub(super) in_flight: u32,
    /// Shipments to it, oldest first.
    pub(super) nonces: Vec<u64>,
}

/// Our end of an outgoing link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerState {
    Down,
    Dialling(u64),
    Up(u64),
}

impl Seats {
    pub(super) fn say(&mut self, link: LinkId, kind: Kind, payload: Bytes) {
        let message = LinkMessage { kind, payload };
        self.effects.push(Effect::Say(link, message));
    }

    /// One message of a peer. What an old generation still says is dropped.
    pub(super) fn frame(&mut self, _now: Micros, link: LinkId, message: LinkMessage) {
        match (link, message.kind) {
            (LinkId::In(id), kind) if self.links_in.contains(&id) => match kind {
                Kind::Begin(begin) => self.begin(id, begin.nonce),
                Kind::Write(write) => self.write(id, &write, &message.payload),
                Kind::End(end) => self.end(id, end),
                Kind::Hello(_) | Kind::Welcome(_) | Kind::Go(_) | Kind::Pulled(_) => {
                    let why = "only begin, write and end come from a source".to_owned();
                    self.abort_in(id, AbortReason::Protocol(why));
                }
            },
            (LinkId::Out(id), kind) => {
                let Some(peer) = self.peer_of(id) else {
                    return;
                };
                if let Kind::Go(go) = kind {
                    return self.go(peer, id, &go);
                }
                let why = "only go comes from a destination".to_owned();
                let abort = Effect::Abort(link, AbortReason::Protocol(why));
                self.effects.push(abort);
                self.link_out_down(id);
            }
            (LinkId::In(_), _) => {}
        }
    }

    /// Shuts an incoming link. Writes land only through this table, so forgetting the link is the
    /// synchronisation.
    pub(super) fn abort_in(&mut self, link: u64, reason: AbortReason) {
        self.effects.push(Effect::Abort(LinkId::In(link), reason));
        self.link_in_down(link);
    }

    /// Nothing of this link can land any more: imports on it are lost, fences on it fall.
    pub(super) fn link_in_down(&mut self, link: u64) {
        if !self.links_in.remove(&link) {
            return;
        }
        let mut lost: Vec<u32> = Vec::new();
        for &slot in self.imports.values() {
            if let Some(seat) = self.seat(slot)
                && let Phase::Exposed { link: bound, .. } = seat.phase
                && bound == link
            {
                lost.push(slot);
            }
        }
        lost.sort_unstable();
        for slot in lost {
            self.lose_import(slot, "the data link broke");
        }
        self.fences.retain(|_, fence| {
            let falls = fence.link == link;
            if falls {
                self.pool.lift(&fence.pages);
                self.is_dirty = true;
            }
            !falls
        });
    }

    /// Fences too old: shut their links, which frees them.
    pub(super) fn tick(&mut self, now: Micros) {
        let is_old = |fence: &&Fence| now.since(fence.since) >= FENCE_TIMEOUT;
        let old = self.fences.values().filter(is_old);
        let links: BTreeSet<u64> = old.map(|fence| fence.link).collect();
        for link in links {
            self.abort_in(link, AbortReason::FenceTimer);
        }
    }

    /// The links on which we ship, if they are others than those that the router knows.
    pub(super) fn add_links(&mut self, report: &mut Report) {
        let up = |peer: &&Peer| matches!(peer.state, PeerState::Up(_));
        let peers = (self.peers.values().filter(up)).map(|peer| peer.key.worker.clone());
        let peers: Vec<String> = peers.collect();
        if peers == self.links_told {
            return;
        }
        report.links_changed = true;
        let state = |peer: &String| LinkState {
            peer: peer.clone(),
            transport: "tcp".to_owned(),
            bytes_per_s: 0,
        };
        report.links = peers.iter().map(state).collect();
        self.links_told = peers;
    }

    /// When `Tick` has something to do next.
    pub fn next_wake(&self) -> Option<Micros> {
        let oldest = self.fences.values().map(|fence| fence.since).min()?;
        Some(oldest.plus(FENCE_TIMEOUT))
    }

    /// The peer whose outgoing link this is, if it is up.
    pub(super) fn peer_of(&self, link: u64) -> Option<u64> {
        let up = PeerState::Up(link);
        self.peers
            .iter()
            .find(|(_, peer)| peer.state == up)
            .map(|(&id, _)| id)
    }

    /// Connects, if nothing is under way and somebody wants it.
    pub(super) fn dial(&mut self, id: u64) {
        let wanted = self.wanting(id).next().is_some();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.state != PeerState::Down {
            return;
        }
        if !wanted {
            if peer.nonces.is_empty() {
                self.peers.remove(&id);
            }
            return;
        }
        self.links_out += 1;
        peer.state = PeerState::Dialling(self.links_out);
        self.effects.push(Effect::Dial {
            link: self.links_out,
            peer: peer.key.clone(),
            attempt: peer.attempt,
        });
    }

    /// Tickets of seats that wait for the link to a peer.
    fn wanting(&self, id: u64) -> impl Iterator<Item = u64> {
        let nonces = self.peers.get(&id).map_or(&[][..], |peer| &peer.nonces);
        nonces.iter().copied().filter(|nonce| {
            let slot = self.shipments.get(nonce).copied();
            let seat = slot.and_then(|slot| self.seat(slot));
            seat.is_some_and(|seat| matches!(seat.phase, Phase::Want(_)))
        })
    }

    /// A dial succeeded: everybody who waited shows the ticket.
    pub(super) fn link_up(&mut self, link: u64) {
        let dialling = PeerState::Dialling(link);
        let found = self
            .peers
            .iter_mut()
            .find(|(_, peer)| peer.state == dialling);
        let Some((&id, peer)) = found else {
            return;
        };
        peer.state = PeerState::Up(link);
        peer.attempt = 0;
        peer.in_flight = 0;
        let waiting: Vec<u64> = self.wanting(id).collect();
        for nonce in waiting {
            self.show_ticket(link, nonce);
        }
    }

    /// A dial failed or the connection is gone.
    pub(super) fn link_out_down(&mut self, link: u64) {
        let ends = [PeerState::Dialling(link), PeerState::Up(link)];
        let found = self
            .peers
            .iter_mut()
            .find(|(_, peer)| ends.contains(&peer.state));
        let Some((&id, peer)) = found else {
            return;
        };
        if peer.state == PeerState::Dialling(link) {
            peer.attempt = peer.attempt.saturating_add(1);
        }
        peer.state = PeerState::Down;
        peer.in_flight = 0;
        for nonce in peer.nonces.clone() {
            self.ship_lost(nonce);
        }
        self.dial(id);
    }
}
