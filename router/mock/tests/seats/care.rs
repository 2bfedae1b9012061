//! What a router asks for at the start of a session: checksums of shipments, pages zeroed between
//! tenants.

use bytes::Bytes;
use dopd_core::units::Micros;
use dopd_mock::{
    model,
    pages::Pool,
    seats::{Event, LinkId, LinkMessage, Terms},
};
use dopd_router::wire::worker::{End, KvCheck, KvScrub, Write, link_frame::Kind};

use crate::bench::{Bench, LINK_IN, PROMPT, SESSION, SLOT, import, prompt};

fn checked(check: KvCheck) -> Bench {
    let mut bench = Bench::empty();
    let terms = Terms {
        check,
        ..Terms::plain(SESSION)
    };
    bench.seats.handle(Micros(0), Event::SessionUp(terms));
    bench.command(import(SLOT, 0));
    let opened = bench.seats.take_report(0).expect("session").opened_grants;
    bench.nonce = opened[0].nonce;
    bench.event("begin");
    bench
}

/// Three pages land, with this checksum; what became of the seat.
fn arrival(check: KvCheck, payload: &[u8], checksum: Option<u64>) -> String {
    let mut bench = checked(check);
    bench.seats.take_effects();
    let nonce = bench.nonce;
    let say = |bench: &mut Bench, kind, payload| {
        let message = LinkMessage { kind, payload };
        let event = Event::Frame(LinkId::In(LINK_IN), message);
        bench.seats.handle(Micros(0), event);
    };
    let write = Write {
        nonce,
        first: 0,
        count: 3,
        ..Write::default()
    };
    say(
        &mut bench,
        Kind::Write(write),
        Bytes::from(payload.to_vec()),
    );
    let end = End {
        nonce,
        ok: true,
        pages: 3,
        pos: 1,
        tokens: vec![33],
        tokens_hash: model::tokens_hash(model::prompt_hash(&prompt(PROMPT)), &[33]),
        checksum,
    };
    say(&mut bench, Kind::End(end), Bytes::new());
    bench.outcome()
}

fn pages() -> Vec<u8> {
    (0..3 * model::PAGE_BYTES)
        .map(|at| at.to_le_bytes()[0])
        .collect()
}

#[test]
fn a_right_checksum_arrives_a_wrong_or_missing_one_is_lost() {
    for check in [KvCheck::Header, KvCheck::Full] {
        let right = model::checksum(check, &pages());
        assert_eq!(arrival(check, &pages(), Some(right)), "run arrived@1");
        assert_eq!(arrival(check, &pages(), Some(right ^ 1)), "none lost");
        assert_eq!(arrival(check, &pages(), None), "none lost");
    }
    assert_eq!(arrival(KvCheck::Off, &pages(), Some(7)), "run arrived@1");
}

#[test]
fn every_flipped_bit_is_found() {
    let right = model::checksum(KvCheck::Full, &pages());
    for bit in 0..pages().len() * 8 {
        let mut damaged = pages();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(model::checksum(KvCheck::Full, &damaged), right, "bit {bit}");
    }
    let mut damaged = pages();
    damaged[200] ^= 4;
    assert_eq!(arrival(KvCheck::Full, &damaged, Some(right)), "none lost");
}

#[test]
fn a_source_tells_the_checksum_of_what_it_wrote() {
    let mut bench = Bench::empty();
    let terms = Terms {
        check: KvCheck::Full,
        ..Terms::plain(SESSION)
    };
    bench.seats.handle(Micros(0), Event::SessionUp(terms));
    bench.command(crate::bench::compute(SLOT, 9));
    for _ in 0..3 {
        bench.step();
    }
    for event in ["send", "link up", "go", "freeze", "drained"] {
        bench.event(event);
    }
    let mut written = Vec::new();
    for effect in bench.seats.take_effects() {
        let dopd_mock::seats::Effect::Say(_, message) = effect else {
            continue;
        };
        written.extend_from_slice(&message.payload);
        if let Kind::End(end) = message.kind {
            let wanted = model::checksum(KvCheck::Full, &written);
            assert_eq!(end.checksum, Some(wanted));
            return;
        }
    }
    panic!("no end was said");
}

#[test]
fn a_second_write_of_a_page_breaks_the_link() {
    let mut bench = checked(KvCheck::Off);
    bench.event("write");
    bench.seats.take_effects();
    bench.event("write");
    assert_eq!(bench.outcome(), "none abort! lost");
}

#[test]
fn pages_are_zeroed_between_tenants_as_the_router_wishes() {
    let left = |scrub, next_tenant| {
        let mut pool = Pool::new(1);
        let pages = pool.allocate(1, 5, scrub).expect("room");
        pool.set_entry(&pages, 3, 77);
        pool.release(&pages);
        let again = pool.allocate(1, next_tenant, scrub).expect("room");
        pool.entry(&again, 3)
    };
    assert_eq!(left(KvScrub::Never, 6), 77);
    assert_eq!(left(KvScrub::Tenant, 5), 77);
    assert_eq!(left(KvScrub::Tenant, 6), 0);
    assert_eq!(left(KvScrub::Tenant, 0), 0);
    assert_eq!(left(KvScrub::Always, 5), 0);
}
