//! One worker with one seat in a wanted state, and a short text of what an event did to it.

use bytes::Bytes;
use dopd_core::{cost::Timings, units::Micros};
use dopd_mock::{
    model,
    seats::{Effect, Event, LinkId, LinkMessage, Seats, SeatsConfig, Terms, types::Phase},
};
use dopd_router::wire::worker::{
    self as wire, Begin, Command, End, Endpoint, Go, Grant, Report, Role, Write, command,
    link_frame::Kind, open,
};

pub(crate) const SESSION: u64 = 7;
pub(crate) const SLOT: u32 = 1;
/// Incoming link of the worker under test; always up.
pub(crate) const LINK_IN: u64 = 1;
/// Pages of the seat and of the pool.
pub(crate) const PAGES: u32 = 4;
pub(crate) const POOL: u32 = 8;
pub(crate) const PROMPT: u32 = 40;
/// Ticket that the seat ships under.
pub(crate) const NONCE_OUT: u64 = 99;
/// Link number of the first dial.
pub(crate) const LINK_OUT: u64 = 1;

pub(crate) const STATES: [&str; 9] = [
    "none", "reserved", "exposed", "run", "want", "begun", "going", "frozen", "sent",
];

pub(crate) struct Bench {
    pub(crate) seats: Seats,
    /// Ticket of the import, if the seat is one.
    pub(crate) nonce: u64,
}

pub(crate) fn config(name: &str, pages: u32, seed: u64) -> SeatsConfig {
    SeatsConfig {
        worker: name.to_owned(),
        incarnation: seed,
        data_address: format!("{name}:1"),
        pages_total: pages,
        num_seqs_max: 4,
        batch_tokens_max: 16,
        model_len_max: 1_024,
        in_flight_bytes_max: 2 * model::PAGE_BYTES,
        timings: Timings::instant(),
        role: Role::Mixed,
        nonce_seed: seed,
    }
}

pub(crate) fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|index| 32 + index % 90).collect()
}

pub(crate) fn grant(nonce: u64) -> Grant {
    Grant {
        worker: "peer".to_owned(),
        incarnation: 5,
        endpoints: vec![Endpoint {
            transport: "tcp".to_owned(),
            address: "peer:1".to_owned(),
            host: String::new(),
        }],
        nonce,
    }
}

pub(crate) fn open(slot: u32, max_tokens: u32, kind: open::Kind) -> command::Kind {
    command::Kind::Open(wire::Open {
        slot,
        pages: PAGES,
        prompt_tokens: PROMPT,
        prompt_hash: model::prompt_hash(&prompt(PROMPT)),
        sampling: Some(wire::Sampling::default()),
        limits: Some(wire::Limits {
            max_tokens,
            ..wire::Limits::default()
        }),
        kind: Some(kind),
        ..wire::Open::default()
    })
}

pub(crate) fn compute(slot: u32, max_tokens: u32) -> command::Kind {
    let kind = open::Kind::Compute(wire::Compute {
        prompt: prompt(PROMPT),
        answer: Vec::new(),
        prompt_group: 0,
    });
    open(slot, max_tokens, kind)
}

pub(crate) fn import(slot: u32, have: u32) -> command::Kind {
    open(
        slot,
        9,
        open::Kind::Import(wire::Import {
            have,
            ..Default::default()
        }),
    )
}

impl Bench {
    /// An attached worker without seats.
    pub(crate) fn empty() -> Self {
        let mut seats = Seats::new(config("w", POOL, 3));
        seats.handle(Micros(0), Event::SessionUp(Terms::plain(SESSION)));
        seats.handle(Micros(0), Event::Accepted(LINK_IN));
        Self { seats, nonce: 0 }
    }

    /// A worker whose seat is in this state. Sources have computed the prompt and one token;
    /// `max_tokens` is what they may make.
    pub(crate) fn with(state: &str, max_tokens: u32) -> Self {
        let mut bench = Self::empty();
        match state {
            "none" => return bench,
            "reserved" | "exposed" => {
                bench.command(import(SLOT, 0));
                let opened = bench.seats.take_report(0).expect("session").opened_grants;
                bench.nonce = opened[0].nonce;
            }
            _ => {
                bench.command(compute(SLOT, max_tokens));
                // 40 tokens in chunks of 16.
                for _ in 0..3 {
                    bench.step();
                }
            }
        }
        let path: &[&str] = match state {
            "exposed" => &["begin"],
            "want" => &["send"],
            "begun" => &["send", "link up"],
            "going" => &["send", "link up", "go"],
            "frozen" => &["send", "link up", "go", "freeze"],
            "sent" => &["send", "link up", "go", "freeze", "drained"],
            _ => &[],
        };
        for event in path {
            bench.event(event);
        }
        bench.seats.take_effects();
        bench.seats.take_report(0);
        assert_eq!(bench.phase(), state);
        bench
    }

    pub(crate) fn command(&mut self, kind: command::Kind) {
        let command = Command { kind: Some(kind) };
        self.seats
            .handle(Micros(0), Event::Command(SESSION, command));
    }

    pub(crate) fn frame(&mut self, link: LinkId, kind: Kind, payload: usize) {
        let payload = Bytes::from(vec![7; payload]);
        let message = LinkMessage { kind, payload };
        self.seats.handle(Micros(0), Event::Frame(link, message));
    }

    /// One whole step; says whether there was one.
    pub(crate) fn step(&mut self) -> bool {
        let Some(batch) = self.seats.begin_step(Micros(0), 1) else {
            return false;
        };
        self.seats.finish_step(Micros(0), &batch, 0);
        true
    }

    /// An event of table "Seat at a worker", by its name there.
    pub(crate) fn event(&mut self, name: &str) {
        let page = model::PAGE_BYTES as usize;
        let tokens = vec![33];
        let hash = model::tokens_hash(model::prompt_hash(&prompt(PROMPT)), &tokens);
        let incoming = LinkId::In(LINK_IN);
        let nonce = self.nonce;
        let end = |ok| {
            Kind::End(End {
                nonce,
                ok,
                pages: 3,
                pos: 1,
                tokens: tokens.clone(),
                tokens_hash: hash,
                checksum: None,
            })
        };
        match name {
            "open" => self.command(compute(SLOT, 9)),
            "open import" => self.command(import(SLOT, 0)),
            "send" => self.send(Some(grant(NONCE_OUT))),
            "send new" => self.send(Some(grant(NONCE_OUT + 1))),
            "stay" => self.send(None),
            "close" => self.command(command::Kind::Close(wire::Close { slot: SLOT })),
            "session lost" => self.seats.handle(Micros(0), Event::SessionLost),
            "link up" => self.seats.handle(Micros(0), Event::LinkUp(LINK_OUT)),
            "link in down" => self.seats.handle(Micros(0), Event::LinkDown(incoming)),
            "link out down" => {
                let link = LinkId::Out(LINK_OUT);
                self.seats.handle(Micros(0), Event::LinkDown(link));
            }
            // Another seat ships to the same peer: the link is up whatever this seat does.
            "other link up" => {
                self.command(compute(SLOT + 1, 9));
                let (slot, grant) = (SLOT + 1, Some(grant(NONCE_OUT + 2)));
                self.command(command::Kind::Send(wire::Send { slot, grant }));
                self.seats.handle(Micros(0), Event::LinkUp(LINK_OUT));
                self.seats.take_effects();
            }
            "begin" => self.frame(incoming, Kind::Begin(Begin { nonce }), 0),
            "go" => {
                let pages = vec![0; PAGES as usize];
                let go = Go {
                    nonce: NONCE_OUT,
                    pages,
                    first: 0,
                };
                self.frame(LinkId::Out(LINK_OUT), Kind::Go(go), 0);
            }
            "write" => {
                let write = Write {
                    source_pages: Vec::new(),
                    nonce,
                    first: 0,
                    count: 3,
                };
                self.frame(incoming, Kind::Write(write), 3 * page);
            }
            "end ok" => self.frame(incoming, end(true), 0),
            "end aborted" => self.frame(incoming, end(false), 0),
            "preempted" => self.seats.handle(Micros(0), Event::Preempt(SLOT)),
            "step" => {
                self.step();
            }
            // Two pages are in flight, so the transport has no room for the last one yet.
            "freeze" => assert!(self.seats.begin_step(Micros(0), 1).is_none()),
            "drained" => self
                .seats
                .handle(Micros(0), Event::Drained(LINK_OUT, u32::MAX)),
            _ => panic!("no event {name}"),
        }
    }

    fn send(&mut self, grant: Option<Grant>) {
        self.command(command::Kind::Send(wire::Send { slot: SLOT, grant }));
    }

    pub(crate) fn phase(&self) -> &'static str {
        match self.seats.seat(SLOT).map(|seat| &seat.phase) {
            None => "none",
            Some(Phase::Reserved { .. }) => "reserved",
            Some(Phase::Exposed { .. }) => "exposed",
            Some(Phase::Run) => "run",
            Some(Phase::Want(_)) => "want",
            Some(Phase::Begun(_)) => "begun",
            Some(Phase::Going(_)) => "going",
            Some(Phase::Frozen(_)) => "frozen",
            Some(Phase::Sent(_)) => "sent",
        }
    }

    /// State, what was said to whom, what was reported, pages fenced: as one short text.
    pub(crate) fn outcome(&mut self) -> String {
        self.seats.check().expect("invariants hold");
        let mut words = vec![self.phase().to_owned()];
        words.extend(self.seats.take_effects().iter().map(effect));
        if let Some(report) = self.seats.take_report(0) {
            words.extend(columns(&report));
        }
        if self.seats.pool().fenced() > 0 {
            words.push("fence".to_owned());
        }
        words.join(" ")
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Dial { .. } => "dial".to_owned(),
        Effect::Abort(..) => "abort!".to_owned(),
        Effect::Break(_) => "break!".to_owned(),
        Effect::Say(_, message) => match &message.kind {
            Kind::Begin(_) => "Begin".to_owned(),
            Kind::Go(_) => "Go".to_owned(),
            Kind::Write(write) => format!("Write{}", write.first),
            Kind::End(end) if end.ok => "End+".to_owned(),
            Kind::End(_) => "End-".to_owned(),
            other => format!("{other:?}"),
        },
    }
}

fn columns(report: &Report) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(report.opened_slots.iter().map(|_| "opened".to_owned()));
    words.extend(
        report
            .arrived_pos
            .iter()
            .map(|pos| format!("arrived@{pos}")),
    );
    words.extend(report.tokens.iter().map(|_| "token".to_owned()));
    words.extend(report.closed_reasons().map(|reason| {
        let name = reason.as_str_name();
        name.trim_start_matches("CLOSE_REASON_").to_lowercase()
    }));
    words
}
