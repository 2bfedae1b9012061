//! A router as table "Request at the router" has it, small and without policy; it checks what it is
//! told: every token once, in order, of its own request, one `closed` for each Open.

use std::collections::{BTreeMap, HashMap, VecDeque};

use dopd_core::step::StepPolicy;
use dopd_mock::{
    model,
    seats::{Event, Terms},
};
use dopd_router::wire::worker::{
    self as wire, Close, CloseReason, Command, Grant, KvCheck, KvScrub, Report, Sampling, SetRole,
    command, open,
};

use crate::{bench::prompt, network::Network};

/// Worker and slot.
pub(crate) type Place = (usize, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Wait,
    Placing,
    Run,
    Moving,
    Shipping,
    End,
}

#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    max_tokens: u32,
    sampling: Sampling,
    /// The one right answer.
    pub(crate) answer: Vec<u32>,
    pub(crate) got: Vec<u32>,
    pub(crate) state: State,
    pub(crate) current: Option<Place>,
    pub(crate) next: Option<Place>,
    planned: usize,
    pub(crate) is_cancelled: bool,
}

impl Ask {
    pub(crate) fn new(length: u32, max_tokens: u32, seed: u64) -> Self {
        let sampling = Sampling {
            // Every second one greedy.
            temperature: f32::from(u8::from(seed.is_multiple_of(2))),
            seed,
            ..Sampling::default()
        };
        let mut prompt = prompt(length);
        prompt[0] = u32::try_from(seed % 200).expect("small");
        let first = prompt.iter();
        let mut entry = first.fold(model::CHAIN_START, |entry, &t| model::next_entry(entry, t));
        let mut answer = Vec::new();
        for pos in 0..max_tokens {
            let token = model::draw(entry, &sampling, pos).token;
            answer.push(token);
            entry = model::next_entry(entry, token);
            if token == model::EOS {
                break;
            }
        }
        Self {
            prompt,
            max_tokens,
            sampling,
            answer,
            got: Vec::new(),
            state: State::Wait,
            current: None,
            next: None,
            planned: 0,
            is_cancelled: false,
        }
    }
}

/// One attachment of a worker, from both sides.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) router_has_it: bool,
    pub(crate) worker_has_it: bool,
    /// Slot -> request, and whether Close was said.
    pub(crate) slots: BTreeMap<u32, (usize, bool)>,
    pub(crate) commands: VecDeque<(u64, Command)>,
    pub(crate) reports: VecDeque<Report>,
}

#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) asks: Vec<Ask>,
    pub(crate) sessions: Vec<Session>,
    sessions_seen: u64,
    epochs: u64,
    /// Session and slot -> request: whose KV must be in the seat.
    owners: HashMap<(u64, u32), usize>,
}

impl Requests {
    pub(crate) fn new(asks: Vec<Ask>) -> Self {
        let none = || Session {
            id: 0,
            router_has_it: false,
            worker_has_it: false,
            slots: BTreeMap::new(),
            commands: VecDeque::new(),
            reports: VecDeque::new(),
        };
        Self {
            asks,
            sessions: vec![none(), none()],
            sessions_seen: 0,
            epochs: 0,
            owners: HashMap::new(),
        }
    }

    /// A new session, once both sides have let the old one go. Late commands of it stay on the way.
    pub(crate) fn attach(&mut self, network: &mut Network, worker: usize) {
        let session = &mut self.sessions[worker];
        if session.router_has_it || session.worker_has_it {
            return;
        }
        self.sessions_seen += 1;
        session.id = self.sessions_seen;
        session.router_has_it = true;
        session.worker_has_it = true;
        let terms = Terms {
            session: self.sessions_seen,
            check: KvCheck::Full,
            scrub: KvScrub::Tenant,
            step: StepPolicy::default(),
        };
        network.handle(worker, Event::SessionUp(terms));
    }

    fn say(&mut self, worker: usize, kind: command::Kind) {
        let session = &mut self.sessions[worker];
        let command = Command { kind: Some(kind) };
        session.commands.push_back((session.id, command));
    }

    fn open(&mut self, ask: usize, worker: usize, kind: open::Kind) -> Place {
        let slots = &mut self.sessions[worker].slots;
        let slot = (0..64)
            .find(|slot| !slots.contains_key(slot))
            .expect("a free slot");
        slots.insert(slot, (ask, false));
        self.owners.insert((self.sessions[worker].id, slot), ask);
        let it = &self.asks[ask];
        let prompt_tokens = u32::try_from(it.prompt.len()).expect("short");
        let got = u32::try_from(it.got.len()).expect("short");
        // Some reserve what they have, some a little more, some their longest answer.
        let spare = [0, 20, it.max_tokens - got][ask % 3];
        let open = wire::Open {
            slot,
            pages: (prompt_tokens + got + spare).div_ceil(model::PAGE_SIZE),
            prompt_tokens,
            prompt_hash: model::prompt_hash(&it.prompt),
            sampling: Some(it.sampling),
            limits: Some(wire::Limits {
                max_tokens: it.max_tokens,
                ..wire::Limits::default()
            }),
            kind: Some(kind),
            ..wire::Open::default()
        };
        self.say(worker, command::Kind::Open(open));
        (worker, slot)
    }

    fn open_compute(&mut self, ask: usize, worker: usize) {
        let it = &self.asks[ask];
        let kind = open::Kind::Compute(wire::Compute {
            prompt: it.prompt.clone(),
            answer: it.got.clone(),
            prompt_group: 0,
        });
        self.asks[ask].current = Some(self.open(ask, worker, kind));
    }

    fn open_import(&mut self, ask: usize, worker: usize) {
        let have = u32::try_from(self.asks[ask].got.len()).expect("short");
        let kind = open::Kind::Import(wire::Import {
            have,
            ..Default::default()
        });
        self.asks[ask].next = Some(self.open(ask, worker, kind));
    }

    fn send(&mut self, (worker, slot): Place, grant: Option<Grant>) {
        self.say(worker, command::Kind::Send(wire::Send { slot, grant }));
    }

    fn close(&mut self, (worker, slot): Place) {
        let entry = self.sessions[worker].slots.get_mut(&slot).expect("open");
        assert!(!entry.1, "Close once per slot");
        entry.1 = true;
        self.say(worker, command::Kind::Close(Close { slot }));
    }

    pub(crate) fn place(&mut self, ask: usize, worker: usize) {
        if self.asks[ask].state == State::Wait && self.sessions[worker].router_has_it {
            self.open_compute(ask, worker);
            self.asks[ask].state = State::Run;
        }
    }

    /// Prefill at the other worker, decode at this one.
    pub(crate) fn place_pair(&mut self, ask: usize, worker: usize) {
        let both = self.sessions.iter().all(|session| session.router_has_it);
        if self.asks[ask].state == State::Wait && both {
            self.open_import(ask, worker);
            self.asks[ask].planned = 1 - worker;
            self.asks[ask].state = State::Placing;
        }
    }

    pub(crate) fn move_on(&mut self, ask: usize) {
        if let (State::Run, Some((worker, _))) = (self.asks[ask].state, self.asks[ask].current)
            && self.sessions[1 - worker].router_has_it
        {
            self.open_import(ask, 1 - worker);
            self.asks[ask].state = State::Moving;
        }
    }

    /// Cancel, or the hand-off timer of SHIPPING.
    pub(crate) fn cancel(&mut self, ask: usize) {
        if self.asks[ask].state != State::End {
            self.drop_seats(ask);
            self.asks[ask].state = State::End;
            self.asks[ask].is_cancelled = true;
        }
    }

    pub(crate) fn hand_off_timer(&mut self, ask: usize) {
        if self.asks[ask].state == State::Shipping {
            self.give_up_next(ask);
        }
    }

    /// "give up nxt": Close it; if Send was given: Send{cur, none}.
    fn give_up_next(&mut self, ask: usize) {
        if let Some(next) = self.asks[ask].next.take() {
            self.close(next);
        }
        let it = &mut self.asks[ask];
        if let (State::Shipping, Some(current)) = (it.state, it.current) {
            self.send(current, None);
        }
        self.asks[ask].state = State::Run;
    }

    fn drop_seats(&mut self, ask: usize) {
        let it = &mut self.asks[ask];
        let seats = [it.current.take(), it.next.take()];
        for seat in seats.into_iter().flatten() {
            self.close(seat);
        }
    }

    /// "replay": close all seats, WAIT.
    fn replay(&mut self, ask: usize) {
        self.drop_seats(ask);
        self.asks[ask].state = State::Wait;
    }

    /// The router sees the end of a session: every slot is free, requests go on elsewhere.
    pub(crate) fn session_lost(&mut self, worker: usize) {
        let session = &mut self.sessions[worker];
        if !session.router_has_it {
            return;
        }
        session.router_has_it = false;
        session.slots.clear();
        for ask in 0..self.asks.len() {
            let it = &mut self.asks[ask];
            let on = |place: Option<Place>| place.is_some_and(|(at, _)| at == worker);
            if on(it.current) {
                it.current = None;
                it.next = it.next.filter(|&(at, _)| at != worker);
                self.replay(ask);
            } else if on(it.next) {
                it.next = None;
                match it.state {
                    State::Placing => it.state = State::Wait,
                    _ => self.give_up_next(ask),
                }
            } else if it.state == State::Placing && it.planned == worker {
                self.replay(ask);
            }
        }
    }

    pub(crate) fn set_drain(&mut self, worker: usize, drain: bool) {
        self.epochs += 1;
        let role = wire::Role::Mixed.into();
        let epoch = self.epochs;
        self.say(
            worker,
            command::Kind::SetRole(SetRole { role, drain, epoch }),
        );
    }

    /// A report arrives; what a session says that the router has let go is not believed.
    pub(crate) fn report(&mut self, worker: usize, report: &Report) {
        let session = &self.sessions[worker];
        if !session.router_has_it || report.session != session.id {
            return;
        }
        for (slot, grant) in report.opened_slots.iter().zip(&report.opened_grants) {
            if let Some(ask) = self.open_slot(worker, *slot, "opened") {
                self.opened(ask, grant.clone());
            }
        }
        let mut tails = report.arrived_tails.iter().copied();
        for (index, slot) in report.arrived_slots.iter().enumerate() {
            let tail: Vec<u32> = tails
                .by_ref()
                .take(report.arrived_tail_lens[index] as usize)
                .collect();
            if let Some(ask) = self.open_slot(worker, *slot, "arrived") {
                self.arrived(ask, report.arrived_pos[index] as usize, &tail);
            }
        }
        for (slot, token) in report.token_slots.iter().zip(&report.tokens) {
            let open = self.open_slot(worker, *slot, "token");
            if let Some(ask) = open
                && self.asks[ask].current == Some((worker, *slot))
            {
                self.token(ask, *token);
            }
        }
        for (slot, reason) in report.closed_slots.iter().zip(report.closed_reasons()) {
            let open = self.open_slot(worker, *slot, "closed");
            self.sessions[worker].slots.remove(slot);
            if let Some(ask) = open {
                self.closed(ask, (worker, *slot), reason);
            }
        }
    }

    /// Table "Slot at the router": FREE hears nothing, CLOSING ignores.
    fn open_slot(&self, worker: usize, slot: u32, what: &str) -> Option<usize> {
        let Some(&(ask, is_closing)) = self.sessions[worker].slots.get(&slot) else {
            panic!("one_closed_per_open: {what} on free slot {slot} of worker {worker}");
        };
        (!is_closing).then_some(ask)
    }

    fn opened(&mut self, ask: usize, grant: Grant) {
        match self.asks[ask].state {
            State::Placing => self.open_compute(ask, self.asks[ask].planned),
            State::Moving => {}
            state => panic!("opened in {state:?}"),
        }
        self.asks[ask].state = State::Shipping;
        let current = self.asks[ask].current.expect("a source");
        self.send(current, Some(grant));
    }

    fn arrived(&mut self, ask: usize, pos: usize, tail: &[u32]) {
        let it = &mut self.asks[ask];
        assert_eq!(it.state, State::Shipping);
        let known = it.got.len();
        assert!(
            known <= pos && pos - tail.len() <= known,
            "tail closes the gap"
        );
        let missing = tail.len() - (pos - known);
        for token in &tail[missing..] {
            it.got.push(*token);
        }
        assert!(
            it.answer.starts_with(&it.got),
            "token_once_in_order_own_request: tail"
        );
        it.state = State::Run;
        let old = it.current.take().expect("a source");
        it.current = it.next.take();
        self.close(old);
    }

    fn token(&mut self, ask: usize, token: u32) {
        let it = &mut self.asks[ask];
        let pos = it.got.len();
        assert_eq!(
            it.answer.get(pos),
            Some(&token),
            "token_once_in_order_own_request: {pos}"
        );
        it.got.push(token);
    }

    fn closed(&mut self, ask: usize, place: Place, reason: CloseReason) {
        assert_ne!(
            reason,
            CloseReason::Error,
            "no open of these tests is impossible"
        );
        let it = &mut self.asks[ask];
        if it.next == Some(place) {
            it.next = None;
            match it.state {
                State::Placing => it.state = State::Wait,
                _ => self.give_up_next(ask),
            }
            return;
        }
        assert_eq!(it.current.take(), Some(place));
        if matches!(reason, CloseReason::Stop | CloseReason::Length) {
            assert_eq!(it.got, it.answer, "all_tokens_before_finish");
            self.drop_seats(ask);
            self.asks[ask].state = State::End;
        } else {
            self.replay(ask);
        }
    }

    /// `attend_only_complete_current_own_pages`: whatever a seat would read is the KV of its own
    /// request, position by position.
    pub(crate) fn check_kv(&self, network: &Network, worker: usize) {
        let seats = &network.workers[worker];
        let Some(session) = seats.session() else {
            return;
        };
        for slot in 0..16 {
            let Some(seat) = seats.seat(slot) else {
                continue;
            };
            let ask = &self.asks[self.owners[&(session, slot)]];
            assert!(ask.answer.starts_with(&seat.answer), "own tokens");
            let mut entry = model::CHAIN_START;
            let tokens = ask.prompt.iter().chain(&seat.answer);
            for (position, &token) in (1..=seat.computed).zip(tokens) {
                entry = model::next_entry(entry, token);
                let found = seats.pool().entry_before(&seat.pages, position);
                let phase = &seat.phase;
                assert_eq!(
                    found, entry,
                    "attend_only_complete_current_own_pages: slot {slot} of worker {worker}, \
                     position {position}, {phase:?}"
                );
            }
        }
    }
}
