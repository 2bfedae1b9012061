//! Sequences that outgrow their pages: they take free ones, and if there are none somebody goes, by
//! the rule of `seats/room.rs`.

use dopd_core::units::Micros;
use dopd_mock::{
    model,
    seats::{Event, Seats, SeatsConfig, Terms},
};
use dopd_router::wire::worker::{
    self as wire, CloseReason, Command, KvScrub, Report, command, open,
};

use crate::{
    bench::{Bench, SESSION, config, prompt},
    requests::Ask,
};

const PROMPT: u32 = 30;
const MAX_TOKENS: u32 = 40;

/// A worker of so many pages, its requests, and what was heard of each.
struct Fleet {
    seats: Seats,
    asks: Vec<Ask>,
    heard: Vec<Vec<u32>>,
    closed: Vec<Option<CloseReason>>,
    reports: Vec<Report>,
}

impl Fleet {
    fn new(pages: u32) -> Self {
        let config = SeatsConfig {
            num_seqs_max: 16,
            batch_tokens_max: 64,
            ..config("w", pages, 3)
        };
        let mut seats = Seats::new(config);
        seats.handle(Micros(0), Event::SessionUp(Terms::plain(SESSION)));
        Self {
            seats,
            asks: Vec::new(),
            heard: Vec::new(),
            closed: Vec::new(),
            reports: Vec::new(),
        }
    }

    fn command(&mut self, kind: command::Kind) {
        let command = Command { kind: Some(kind) };
        self.seats
            .handle(Micros(0), Event::Command(SESSION, command));
    }

    /// Opens the next slot with the pages of its prompt, and no more.
    fn open(&mut self, priority: i32, is_import: bool) -> usize {
        let slot = self.asks.len();
        let ask = Ask::new(PROMPT, MAX_TOKENS, slot as u64);
        let kind = if is_import {
            open::Kind::Import(wire::Import::default())
        } else {
            open::Kind::Compute(wire::Compute {
                prompt: ask.prompt.clone(),
                ..wire::Compute::default()
            })
        };
        self.command(command::Kind::Open(wire::Open {
            slot: u32::try_from(slot).expect("few"),
            pages: PROMPT.div_ceil(model::PAGE_SIZE),
            priority,
            prompt_tokens: PROMPT,
            prompt_hash: model::prompt_hash(&ask.prompt),
            sampling: Some(wire::Sampling {
                temperature: f32::from(u8::from(slot.is_multiple_of(2))),
                seed: slot as u64,
                ..wire::Sampling::default()
            }),
            limits: Some(wire::Limits {
                max_tokens: MAX_TOKENS,
                ..wire::Limits::default()
            }),
            tenant: slot as u64,
            kind: Some(kind),
            ..wire::Open::default()
        }));
        self.asks.push(ask);
        self.heard.push(Vec::new());
        self.closed.push(None);
        slot
    }

    /// Steps until nothing is to do or `until` holds; every book is right after each.
    fn run(&mut self, until: impl Fn(&Self) -> bool) {
        self.listen();
        while !until(self) {
            let batch = self.seats.begin_step(Micros(0), 1);
            self.seats.check().expect("the books are right");
            if let Some(batch) = &batch {
                self.seats.finish_step(Micros(0), batch, 0);
                self.seats.check().expect("the books are right");
            }
            self.listen();
            if batch.is_none() {
                return;
            }
        }
    }

    fn listen(&mut self) {
        let report = self.seats.take_report(0).expect("a session");
        for (slot, token) in report.token_slots.iter().zip(&report.tokens) {
            self.heard[*slot as usize].push(*token);
        }
        for (slot, reason) in report.closed_slots.iter().zip(report.closed_reasons()) {
            assert_eq!(
                self.closed[*slot as usize].replace(reason),
                None,
                "closed once"
            );
        }
        let sum = report.pages_free + report.pages_owned + report.pages_cached;
        assert_eq!(sum + report.pages_fenced, self.seats.pool().total());
        self.reports.push(report);
    }

    fn preempted(&self) -> Vec<usize> {
        let slots = 0..self.closed.len();
        slots
            .filter(|&slot| self.closed[slot] == Some(CloseReason::Preempted))
            .collect()
    }
}

#[test]
fn a_sequence_takes_pages_as_it_grows() {
    let mut fleet = Fleet::new(64);
    for _ in 0..4 {
        fleet.open(0, false);
    }
    assert_eq!(fleet.seats.pool().owned(), 4 * 2);
    fleet.run(|_| false);
    for (heard, ask) in fleet.heard.iter().zip(&fleet.asks) {
        assert_eq!(heard, &ask.answer, "as if all had been reserved");
    }
    assert_eq!(fleet.preempted(), Vec::<usize>::new());
    let most = fleet.reports.iter().map(|report| report.pages_owned).max();
    assert_eq!(
        most,
        Some(4 * (PROMPT + MAX_TOKENS - 1).div_ceil(model::PAGE_SIZE))
    );
    assert!(fleet.seats.is_clean());
}

/// Nine pages for four that want five each: who came last goes first, and whoever stays answers as
/// if it had been alone.
#[test]
fn the_latest_goes_and_the_oldest_gets_on() {
    let mut fleet = Fleet::new(9);
    for _ in 0..4 {
        fleet.open(0, false);
    }
    fleet.run(|_| false);
    assert_eq!(fleet.preempted(), [1, 2, 3]);
    assert_eq!(fleet.heard[0], fleet.asks[0].answer);
    let order: Vec<u32> = fleet
        .reports
        .iter()
        .flat_map(|report| &report.closed_slots)
        .copied()
        .collect();
    assert_eq!(order[..2], [3, 2], "the latest first");
    for (heard, ask) in fleet.heard.iter().zip(&fleet.asks) {
        assert!(ask.answer.starts_with(heard));
    }
    assert_eq!(fleet.reports.last().map(|report| report.preempted), Some(3));
    assert!(fleet.seats.is_clean());
}

#[test]
fn the_least_urgent_goes_before_the_latest() {
    let mut fleet = Fleet::new(9);
    for priority in [0, 5, 0, -1] {
        fleet.open(priority, false);
    }
    fleet.run(|fleet| !fleet.preempted().is_empty());
    assert_eq!(fleet.preempted(), [1]);
    fleet.run(|fleet| fleet.preempted().len() > 1);
    assert_eq!(fleet.preempted(), [1, 2]);
    fleet.run(|_| false);
    assert_eq!(fleet.preempted(), [0, 1, 2], "the most urgent stays");
    assert_eq!(fleet.heard[3], fleet.asks[3].answer);
}

/// An import that nobody writes yet costs nothing to lose.
#[test]
fn a_reserved_import_goes_in_its_turn() {
    let mut fleet = Fleet::new(8);
    for is_import in [false, false, true] {
        fleet.open(0, is_import);
    }
    fleet.run(|fleet| !fleet.preempted().is_empty());
    assert_eq!(fleet.preempted(), [2]);
}

#[test]
fn alone_and_still_too_long_is_preempted_itself() {
    let mut fleet = Fleet::new(3);
    fleet.open(0, false);
    fleet.run(|_| false);
    assert_eq!(fleet.preempted(), [0]);
    // 48 positions hold the prompt and 18 tokens; the nineteenth is drawn from the last of them.
    assert_eq!(fleet.heard[0], fleet.asks[0].answer[..19]);
    assert!(fleet.seats.is_clean());
}

/// Pages that a peer may write, and a source that is as good as gone, are left alone.
#[test]
fn who_is_never_chosen() {
    for state in ["exposed", "frozen", "sent"] {
        let mut bench = Bench::with(state, 400);
        // The seat under test has 4 of 8 pages; the other needs a fifth at 64 tokens.
        let other = Ask::new(60, 400, 9);
        bench.command(command::Kind::Open(wire::Open {
            slot: 2,
            pages: 4,
            prompt_tokens: 60,
            prompt_hash: model::prompt_hash(&other.prompt),
            sampling: Some(wire::Sampling::default()),
            limits: Some(wire::Limits {
                max_tokens: 400,
                ..wire::Limits::default()
            }),
            priority: -7,
            kind: Some(open::Kind::Compute(wire::Compute {
                prompt: other.prompt.clone(),
                ..wire::Compute::default()
            })),
            ..wire::Open::default()
        }));
        while bench.step() {}
        assert_eq!(
            bench.phase(),
            state,
            "not chosen though it came first and is less urgent"
        );
        assert!(bench.seats.seat(2).is_none(), "the one in need goes");
        bench.seats.check().expect("the books are right");
    }
}

/// A page that another tenant had comes zeroed, when it grows as when it is opened.
#[test]
fn pages_taken_later_are_scrubbed_too() {
    let mut fleet = Fleet::new(8);
    let terms = Terms {
        scrub: KvScrub::Tenant,
        ..Terms::plain(SESSION)
    };
    fleet.seats.handle(Micros(0), Event::SessionUp(terms));
    let first = fleet.open(0, false);
    fleet.run(|_| false);
    assert_eq!(fleet.closed[first], Some(CloseReason::Length));
    let second = u32::try_from(fleet.open(0, false)).expect("few");
    // As soon as it has taken its third page, only the first position of that is written.
    fleet.run(|fleet| {
        fleet
            .seats
            .seat(second)
            .is_some_and(|seat| seat.pages.len() == 3)
    });
    let seat = fleet.seats.seat(second).expect("open");
    assert_eq!(seat.computed, 33);
    for position in 33..48 {
        assert_eq!(
            fleet.seats.pool().entry(&seat.pages, position),
            0,
            "{position}"
        );
    }
}

/// Too few pages for what is known already is a router's mistake.
#[test]
fn an_open_must_hold_what_it_brings() {
    let full = prompt(PROMPT);
    for (answer, have, pages, is_taken) in [
        (2, 0, 2, true),
        (3, 0, 2, false),
        (0, 3, 2, true),
        (0, 4, 2, false),
    ] {
        let mut fleet = Fleet::new(8);
        let kind = if have > 0 {
            open::Kind::Import(wire::Import {
                have,
                ..wire::Import::default()
            })
        } else {
            open::Kind::Compute(wire::Compute {
                prompt: full.clone(),
                answer: vec![40; answer],
                ..wire::Compute::default()
            })
        };
        fleet.command(command::Kind::Open(wire::Open {
            slot: 0,
            pages,
            prompt_tokens: PROMPT,
            prompt_hash: model::prompt_hash(&full),
            kind: Some(kind),
            ..wire::Open::default()
        }));
        let report = fleet.seats.take_report(0).expect("a session");
        let reason = report.closed_reasons().next();
        let expected = (!is_taken).then_some(CloseReason::Error);
        assert_eq!(
            reason, expected,
            "{answer} {have} {:?}",
            report.closed_messages
        );
    }
}
