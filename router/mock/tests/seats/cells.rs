//! Every cell of table "Seat at a worker", and the rows of "Page", "Link end", "Session" that one
//! worker shows.

use dopd_core::units::Micros;
use dopd_mock::seats::{Event, LinkId, Terms};
use dopd_router::wire::worker::{self as wire, Close, Command, command, open};

use crate::bench::{Bench, LINK_IN, LINK_OUT, POOL, SESSION, SLOT, STATES, compute, grant, import};

/// Event | outcome in each state, in the order of `STATES`. First word: the state after it (`-`: no
/// seat); then what was said and reported. `=`: nothing happened; `!`: protocol error, stream
/// broken; `~`: protocol error, link aborted; `lost!`: closed{preempted}.
const CELLS: &str = "
open          | run | ! | ! | ! | ! | ! | ! | ! | !
open import   | reserved opened | ! | ! | ! | ! | ! | ! | ! | !
send new|=|=|=| want dial | = | begun Begin | begun End- Begin | begun End- Begin | begun Begin
stay          | = | = | = | = | run | run | run End- | run End- | run
close |=|- asked|- asked fence|- asked|- asked|- asked|- End- asked|- End- asked|- asked
session lost | = | - | - fence | - | - | - | - End- | - End- | -
link up       | = | = | = | = | begun Begin | = | = | = | =
begin         | = | exposed Go | = | = | = | = | = | = | =
write         | ~ | ~ | = | ~ | ~ | ~ | ~ | ~ | ~
end ok        | = | = | - lost | = | = | = | = | = | =
end aborted   | = | = | - lost | = | = | = | = | = | =
link in down  | = | = | - lost | = | = | = | = | = | =
link out down | = | = | = | = | want dial | run | run | run | =
step          | = | = | = | run token | want token | begun token | frozen | = | =
drained       | = | = | = | = | = | = | = | sent Write2 End+ | =
preempted     | = | - lost! | - lost! fence | - lost! | - lost! | - lost! | - End- lost! | = | =
";

#[test]
fn every_cell_of_the_seat_table_does_what_it_says() {
    for line in CELLS.lines().filter(|line| !line.is_empty()) {
        let mut cells = line.split('|').map(str::trim);
        let event = cells.next().expect("the event");
        let cells: Vec<&str> = cells.collect();
        assert_eq!(cells.len(), STATES.len(), "{event}");
        for (state, cell) in STATES.iter().zip(cells) {
            let expected = match cell {
                "=" => (*state).to_owned(),
                "!" => format!("{state} break!"),
                "~" => format!("{state} abort!"),
                cell => cell.replace("lost!", "preempted"),
            };
            let expected = match expected.strip_prefix("- ") {
                Some(rest) => format!("none {rest}"),
                None if expected == "-" => "none".to_owned(),
                None => expected,
            };
            let mut bench = Bench::with(state, 9);
            bench.event(event);
            assert_eq!(bench.outcome(), expected, "{event} in state {state}");
        }
    }
}

/// Row "Go": the link is up, the ticket is this seat's or nobody's.
#[test]
fn go_without_a_shipment_is_answered_with_an_abort() {
    for (state, expected) in [
        ("none", "none End-"),
        ("reserved", "reserved End-"),
        ("exposed", "exposed End-"),
        ("run", "run End-"),
        ("begun", "going Write0"),
        ("going", "going"),
        ("frozen", "frozen"),
        ("sent", "sent"),
    ] {
        let mut bench = Bench::with(state, 9);
        if ["none", "reserved", "exposed", "run"].contains(&state) {
            bench.event("other link up");
        }
        bench.event("go");
        assert_eq!(bench.outcome(), expected, "go in state {state}");
    }
}

/// Row "Go", WANT: the grant was replaced, the answer to the old one comes late.
#[test]
fn go_of_a_replaced_grant_is_answered_with_an_abort() {
    let mut bench = Bench::with("begun", 9);
    bench.event("send new");
    bench.outcome();
    bench.event("go");
    assert_eq!(bench.outcome(), "begun End-");
}

/// Row "End ok", EXPOSED, with everything landed.
#[test]
fn complete_import_arrives_and_decodes() {
    let mut bench = Bench::with("exposed", 9);
    bench.event("write");
    bench.event("end ok");
    assert_eq!(bench.outcome(), "run arrived@1");
    bench.event("step");
    assert_eq!(bench.outcome(), "run token");
}

/// Row "last token made".
#[test]
fn last_token_and_closed_are_in_one_report() {
    for state in ["run", "want", "begun"] {
        let mut bench = Bench::with(state, 2);
        bench.event("step");
        assert_eq!(bench.outcome(), "none token length", "{state}");
    }
}

/// Rows "page computed, not the last" and "last token made" in GOING: the prompt is still computed
/// when Go comes.
#[test]
fn full_pages_travel_while_the_prompt_is_computed() {
    let mut bench = Bench::empty();
    bench.command(compute(SLOT, 1));
    for event in ["send", "link up", "go"] {
        bench.event(event);
    }
    assert_eq!(bench.outcome(), "going dial Begin");
    bench.event("step");
    assert_eq!(bench.outcome(), "going Write0");
    bench.event("step");
    assert_eq!(bench.outcome(), "going Write1");
    bench.event("step");
    assert_eq!(bench.outcome(), "none End- token length");
}

/// Table "Page": fenced pages are not taken, End and link loss free them, the timer only by way of
/// an abort.
#[test]
fn fence_falls_with_end_with_the_link_or_with_an_abort() {
    for (event, said) in [
        ("end ok", ""),
        ("end aborted", ""),
        ("link in down", ""),
        ("tick", " abort!"),
    ] {
        let mut bench = Bench::with("exposed", 9);
        bench.event("close");
        assert_eq!(bench.outcome(), "none asked fence");
        bench.event("begin");
        bench.event("write");
        assert_eq!(
            bench.outcome(),
            "none fence",
            "a late write on a fence is harmless"
        );
        match event {
            "tick" => {
                bench.seats.handle(Micros::from_millis(499), Event::Tick);
                assert_eq!(bench.outcome(), "none fence", "too early");
                assert_eq!(bench.seats.next_wake(), Some(Micros::from_millis(500)));
                bench.seats.handle(Micros::from_millis(500), Event::Tick);
            }
            event => bench.event(event),
        }
        assert_eq!(bench.outcome(), format!("none{said}"), "{event}");
        assert_eq!(bench.seats.pool().free(), POOL);
    }
}

/// Table "Page": an aborted link takes the exposed imports on it along.
#[test]
fn fence_timer_loses_other_imports_on_the_link() {
    let mut bench = Bench::with("exposed", 9);
    bench.command(import(SLOT + 1, 0));
    let opened = bench.seats.take_report(0).expect("session").opened_grants;
    bench.event("close");
    bench.nonce = opened[0].nonce;
    bench.event("begin");
    bench.seats.handle(Micros::from_millis(500), Event::Tick);
    assert_eq!(bench.outcome(), "none Go abort! asked lost");
}

/// End counts on the bound link only, for a seat as for a fence.
#[test]
fn end_of_another_link_is_ignored() {
    let mut bench = Bench::with("exposed", 9);
    bench.seats.handle(Micros(0), Event::Accepted(LINK_IN + 1));
    let end = wire::link_frame::Kind::End(wire::End {
        nonce: bench.nonce,
        ..wire::End::default()
    });
    bench.frame(LinkId::In(LINK_IN + 1), end.clone(), 0);
    assert_eq!(bench.outcome(), "exposed");
    bench.event("close");
    bench.frame(LinkId::In(LINK_IN + 1), end, 0);
    assert_eq!(bench.outcome(), "none asked fence");
}

/// Rule 3: the second use of a ticket ends at Begin, whoever shows it.
#[test]
fn grant_is_used_once() {
    let mut bench = Bench::with("reserved", 9);
    bench.seats.handle(Micros(0), Event::Accepted(LINK_IN + 1));
    bench.event("begin");
    assert_eq!(bench.outcome(), "exposed Go");
    let begin = wire::link_frame::Kind::Begin(wire::Begin { nonce: bench.nonce });
    bench.frame(LinkId::In(LINK_IN + 1), begin, 0);
    assert_eq!(bench.outcome(), "exposed");
    let write = wire::Write {
        source_pages: Vec::new(),
        nonce: bench.nonce,
        first: 0,
        count: 1,
    };
    bench.frame(
        LinkId::In(LINK_IN + 1),
        wire::link_frame::Kind::Write(write),
        128,
    );
    assert_eq!(
        bench.outcome(),
        "exposed abort!",
        "only the bound link may write"
    );
}

#[test]
fn tickets_never_repeat_even_after_a_restart() {
    let mut seen = std::collections::HashSet::new();
    for seed in 0..4 {
        let mut seats = dopd_mock::seats::Seats::new(crate::bench::config("w", POOL, seed));
        seats.handle(Micros(0), Event::SessionUp(Terms::plain(SESSION)));
        for _ in 0..100 {
            let open = Command {
                kind: Some(import(SLOT, 0)),
            };
            seats.handle(Micros(0), Event::Command(SESSION, open));
            let close = command::Kind::Close(Close { slot: SLOT });
            seats.handle(
                Micros(0),
                Event::Command(SESSION, Command { kind: Some(close) }),
            );
            let report = seats.take_report(0).expect("session");
            assert!(seen.insert(report.opened_grants[0].nonce));
        }
    }
}

/// Row "Open", NONE: everything that makes it `refused`, and what would fail anywhere: `error`.
#[test]
fn open_without_room_is_refused_and_impossible_open_is_an_error() {
    let mut bench = Bench::empty();
    bench.command(compute(2, 9));
    bench.command(compute(3, 9));
    bench.outcome();
    bench.event("open");
    assert_eq!(bench.outcome(), "none refused", "8 pages, 4 each");
    let mut bench = Bench::empty();
    bench.seats.handle(Micros(0), Event::Drain);
    bench.event("open");
    assert_eq!(bench.outcome(), "none refused", "draining");
    let command::Kind::Open(good) = compute(SLOT, 9) else {
        panic!("an open");
    };
    let mut bench = Bench::empty();
    for slot in 0..5 {
        bench.command(command::Kind::Open(wire::Open {
            slot,
            pages: 1,
            prompt_tokens: 10,
            kind: Some(open::Kind::Import(wire::Import {
                have: 0,
                ..Default::default()
            })),
            ..good.clone()
        }));
    }
    let outcome = bench.outcome();
    assert_eq!(
        outcome, "reserved opened opened opened opened refused",
        "4 sequences"
    );
    for spoil in [
        |open: &mut wire::Open| open.pages = 2,
        |open: &mut wire::Open| open.prompt_tokens = 0,
        |open: &mut wire::Open| open.prompt_tokens = 1_024,
        |open: &mut wire::Open| open.prompt_tokens = 39,
        |open: &mut wire::Open| open.prompt_hash ^= 1,
        |open: &mut wire::Open| open.kind = None,
    ] {
        let mut open = good.clone();
        spoil(&mut open);
        let mut bench = Bench::empty();
        bench.command(command::Kind::Open(open));
        assert_eq!(bench.outcome(), "none error");
    }
}

/// Table "Session": what an old session says is void.
#[test]
fn no_old_session_accepted() {
    let mut bench = Bench::with("run", 9);
    bench
        .seats
        .handle(Micros(0), Event::SessionUp(Terms::plain(SESSION + 1)));
    assert_eq!(bench.outcome(), "none");
    bench.event("open");
    assert_eq!(bench.outcome(), "none");
}

/// Table "Session": the greatest epoch wins, and the label outlives the session.
#[test]
fn role_epoch_never_falls() {
    let mut bench = Bench::empty();
    let set = |epoch, drain| {
        let role = wire::Role::Decode.into();
        command::Kind::SetRole(wire::SetRole { role, drain, epoch })
    };
    bench.command(set(5, true));
    bench.command(set(5, false));
    bench.command(set(4, false));
    assert!(bench.seats.label().drain);
    assert_eq!(bench.seats.label().epoch, 5);
    bench.seats.handle(Micros(0), Event::SessionLost);
    bench
        .seats
        .handle(Micros(0), Event::SessionUp(Terms::plain(SESSION + 1)));
    let report = bench.seats.take_report(0).expect("session");
    assert_eq!((report.role_epoch, report.draining), (5, true));
    assert_eq!(report.role(), wire::Role::Decode);
}

/// Table "Link end": an old generation is not heard, a new one carries the shipments that wait.
#[test]
fn old_generation_is_not_heard() {
    let mut bench = Bench::with("begun", 9);
    bench.event("link out down");
    bench.event("go");
    assert_eq!(bench.outcome(), "run");
    bench.event("send");
    assert_eq!(bench.outcome(), "want dial");
    bench.event("link up");
    assert_eq!(bench.outcome(), "want", "the old number");
    bench.seats.handle(Micros(0), Event::LinkUp(LINK_OUT + 1));
    assert_eq!(bench.outcome(), "begun Begin");
    assert_ne!(grant(1).nonce, bench.nonce);
}

/// An import whose count or hash is wrong is lost, never attended to.
#[test]
fn end_that_does_not_fit_loses_the_import() {
    let tokens = vec![33];
    let prompt_hash = dopd_mock::model::prompt_hash(&crate::bench::prompt(crate::bench::PROMPT));
    let good = wire::End {
        nonce: 0,
        ok: true,
        pages: 3,
        pos: 1,
        tokens_hash: dopd_mock::model::tokens_hash(prompt_hash, &tokens),
        tokens,
        checksum: None,
    };
    for spoil in [
        |end: &mut wire::End| end.pages = 2,
        |end: &mut wire::End| end.pos = 0,
        |end: &mut wire::End| end.pos = 2,
        |end: &mut wire::End| end.pos = u32::MAX,
        |end: &mut wire::End| end.tokens = vec![34],
        |end: &mut wire::End| end.tokens_hash ^= 1,
    ] {
        let mut bench = Bench::with("exposed", 9);
        bench.event("write");
        let mut end = wire::End {
            nonce: bench.nonce,
            ..good.clone()
        };
        spoil(&mut end);
        bench.frame(LinkId::In(LINK_IN), wire::link_frame::Kind::End(end), 0);
        assert_eq!(bench.outcome(), "none lost");
        assert_eq!(
            bench.seats.pool().free(),
            POOL,
            "End is the last word: no fence"
        );
    }
}

/// Writes outside the shipment break the link, before a byte lands.
#[test]
fn no_write_on_unexposed_page() {
    for (first, count, bytes) in [
        (4, 1, 128),
        (3, 2, 256),
        (u32::MAX, 2, 256),
        (0, 1, 127),
        (0, 2, 128),
    ] {
        let mut bench = Bench::with("exposed", 9);
        let write = wire::Write {
            source_pages: Vec::new(),
            nonce: bench.nonce,
            first,
            count,
        };
        bench.frame(
            LinkId::In(LINK_IN),
            wire::link_frame::Kind::Write(write),
            bytes,
        );
        assert_eq!(bench.outcome(), "none abort! lost");
    }
}

/// The links on which a worker ships are told once, and again when they are others.
#[test]
fn links_are_told_when_they_change() {
    let told = |bench: &mut Bench| {
        let report = bench.seats.take_report(0).expect("session");
        let links = report.links.into_iter();
        let named = links.map(|link| (link.peer, link.transport)).collect();
        let links: Option<Vec<(String, String)>> = report.links_changed.then_some(named);
        links
    };
    let mut bench = Bench::with("want", 9);
    assert_eq!(told(&mut bench), None);
    bench.event("link up");
    let up = Some(vec![("peer".to_owned(), "tcp".to_owned())]);
    assert_eq!(told(&mut bench), up);
    assert_eq!(told(&mut bench), None);
    bench.event("link out down");
    assert_eq!(told(&mut bench), Some(Vec::new()));
    assert_eq!(told(&mut bench), None);
}
