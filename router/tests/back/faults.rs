//! Workers that die, lie or babble: the client sees a pause, never a wrong token.

use dopd_core::log::replay;
use dopd_router::{
    error::Reason,
    metrics::Format,
    streams::sink::FinishReason,
    wire::worker::{CloseReason, LinkState, Logprobs, Report, Role},
};
use std::io::BufRead as _;

use crate::{
    handoff::{Pair, shipping},
    support::{
        eventually,
        router::{Options, Request, Router},
        worker::{Say, Worker},
    },
};

#[tokio::test]
async fn a_broken_stream_replays_elsewhere() {
    let router = Router::start(Options::default());
    let mut first = Worker::join(router.addresses[0], "first", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = first.compute().await;
    first.say(Say::nothing().token(slot, 70)).await;
    first.say(Say::nothing().token(slot, 71)).await;
    assert_eq!(answer.until(2).await, [70, 71]);
    drop(first);
    let mut second = Worker::join(router.addresses[0], "second", Role::Mixed).await;
    let (slot, prompt, so_far) = second.compute().await;
    assert_eq!(prompt, (1..=20).collect::<Vec<_>>());
    assert_eq!(so_far, [70, 71], "what the client has");
    second.say(Say::nothing().token(slot, 72)).await;
    second
        .say(
            Say::nothing()
                .token(slot, 73)
                .closed(slot, CloseReason::Stop),
        )
        .await;
    assert_eq!(answer.finish().await, FinishReason::Stop);
    assert_eq!(answer.tokens, [70, 71, 72, 73]);
    assert_eq!(router.dispatch.status().await.replays_total, 1);
    router.end();
}

#[tokio::test]
async fn the_death_of_the_source_replays_and_closes_the_import() {
    let Pair {
        router,
        mut p,
        mut d,
        ticket,
        mut answer,
        cur,
        nxt,
    } = shipping(Request::default()).await;
    p.say(Say::nothing().token(cur, 100)).await;
    answer.until(1).await;
    drop(p);
    d.close_of(nxt).await;
    d.say(Say::nothing().closed(nxt, CloseReason::Asked)).await;
    // The decode worker is all that is left, so it computes what the client has and goes on.
    let (slot, _, so_far) = d.compute().await;
    assert_eq!(so_far, [100]);
    d.say(Say::nothing().token(slot, 101)).await;
    assert_eq!(answer.until(2).await, [100, 101]);
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn the_death_of_the_destination_lets_the_source_stay() {
    let Pair {
        router,
        mut p,
        d,
        ticket,
        mut answer,
        cur,
        ..
    } = shipping(Request::default()).await;
    drop(d);
    assert_eq!(p.send_of(cur).await.map(|grant| grant.nonce), None, "stay");
    p.say(Say::nothing().token(cur, 1)).await;
    p.say(
        Say::nothing()
            .token(cur, 2)
            .closed(cur, CloseReason::Length),
    )
    .await;
    assert_eq!(answer.finish().await, FinishReason::Length);
    assert_eq!(answer.tokens, [1, 2]);
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn a_seat_that_is_refused_is_placed_again() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = worker.compute().await;
    worker
        .say(Say::nothing().closed(slot, CloseReason::Refused))
        .await;
    let (slot, ..) = worker.compute().await;
    worker.say(Say::nothing().token(slot, 9)).await;
    assert_eq!(answer.until(1).await, [9]);
    assert_eq!(
        router.dispatch.status().await.replays_total,
        0,
        "it never ran"
    );
    router.end();
}

#[tokio::test]
async fn a_request_under_which_workers_die_is_given_up() {
    let router = Router::start(Options::default());
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    for name in ["first", "second"] {
        let mut worker = Worker::join(router.addresses[0], name, Role::Mixed).await;
        worker.compute().await;
    }
    assert_eq!(answer.fail().await.reason, Reason::PoisonSuspect);
    eventually("ended", || router.dispatch.active() == 0).await;
    router.end();
}

/// A change that makes a report of an open seat (its slot is given) malformed.
type Spoil = fn(&mut Report, u32);

/// Every way to spoil a report.
const SPOILED: [(&str, Spoil); 27] = [
    ("opened without grant", |r, s| r.opened_slots.push(s)),
    ("opened a compute seat", |r, s| {
        *r = Say(r.clone()).opened(s).0;
    }),
    ("arrived a compute seat", |r, s| {
        *r = Say(r.clone()).arrived(s, 0, &[]).0;
    }),
    ("arrived without position", |r, s| r.arrived_slots.push(s)),
    ("tail without seat", |r, _| r.arrived_tails.push(1)),
    ("tokens without slot", |r, _| r.tokens.push(1)),
    ("slot without token", |r, s| r.token_slots.push(s)),
    ("counts of another sum", |r, s| {
        *r = Say(r.clone()).token(s, 1).0;
        r.token_counts.push(2);
    }),
    ("counts of another length", |r, s| {
        *r = Say(r.clone()).token(s, 1).0;
        r.token_counts = vec![1, 0];
    }),
    ("a count of 0", |r, s| {
        r.token_slots = vec![s, s];
        r.token_counts = vec![1, 0];
        r.tokens = vec![1];
    }),
    ("a token of a free slot", |r, s| {
        *r = Say(r.clone()).token(s + 1, 1).0;
    }),
    ("a token of no slot", |r, _| {
        *r = Say(r.clone()).token(u32::MAX, 1).0;
    }),
    ("closed without reason", |r, s| r.closed_slots.push(s)),
    ("closed for no reason", |r, s| {
        *r = Say(r.clone()).closed(s, CloseReason::Unspecified).0;
    }),
    ("closed twice", |r, s| {
        *r = Say(r.clone())
            .closed(s, CloseReason::Lost)
            .closed(s, CloseReason::Lost)
            .0;
    }),
    ("a log probability of no token", |r, _| {
        r.logprobs = Some(Logprobs {
            token_index: vec![0],
            chosen: vec![0.0],
            top_lens: vec![0],
            ..Logprobs::default()
        });
    }),
    ("more pages than the pool", |r, _| r.pages_cached = 1),
    ("pages with two owners", |r, _| r.pages_owned = 1),
    ("reused tokens of another length", |r, s| {
        r.reused_slots = vec![s];
    }),
    ("reused tokens of a free slot", |r, s| {
        r.reused_slots = vec![s + 1];
        r.reused_tokens = vec![1];
    }),
    ("more prefixes than a report may have", |r, _| {
        r.stored_hashes = vec![1; 4_000];
        r.evicted_hashes = vec![2; 97];
    }),
    ("more links than a worker may have", |r, _| {
        r.links_changed = true;
        r.links = vec![link("d", "tcp"); 257];
    }),
    ("a link to nobody", |r, _| {
        r.links_changed = true;
        r.links = vec![link("", "tcp")];
    }),
    ("a link over nothing", |r, _| {
        r.links_changed = true;
        r.links = vec![link("d", "")];
    }),
    ("a link to a terminal", |r, _| {
        r.links_changed = true;
        r.links = vec![link("d\u{1b}[2J", "tcp")];
    }),
    ("links that are not told", |r, _| {
        r.links = vec![link("d", "tcp")];
    }),
    ("no role", |r, _| r.role = 0),
];

fn link(peer: &str, transport: &str) -> LinkState {
    LinkState {
        peer: peer.to_owned(),
        transport: transport.to_owned(),
        bytes_per_s: 1,
    }
}

#[tokio::test]
async fn links_are_shown_as_they_were_told_last() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "p", Role::Prefill).await;
    let both = vec![link("d0", "cuda_ipc"), link("d1", "tcp")];
    for (links, is_told, wanted) in [
        (both.clone(), true, both.clone()),
        (vec![], false, both.clone()),
        (vec![], true, vec![]),
        (both.clone(), true, both),
    ] {
        let wanted: Vec<&str> = wanted.iter().map(|link| &*link.transport).collect();
        let mut report = worker.report(Say::nothing());
        (report.links, report.links_changed) = (links, is_told);
        let step = report.step;
        worker.send(report).await;
        router.until_links("p", &wanted, step).await;
    }
    router.end();
}

#[tokio::test]
async fn a_malformed_report_ends_the_session() {
    let router = Router::start(Options::default());
    let mut errors = 0;
    for (what, spoil) in SPOILED {
        let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
        let (ticket, mut answer) = router.submit(Request::default()).await;
        let (slot, ..) = worker.compute().await;
        let mut report = worker.report(Say::nothing());
        spoil(&mut report, slot);
        worker.send(report).await;
        worker.ended().await;
        errors += 1;
        let counted = format!("dopd_protocol_errors_total{{model=\"test\"}} {errors}\n");
        assert!(
            router.metrics.render(Format::Text).contains(&counted),
            "{what}"
        );
        router.cancel_on(0, ticket).await;
        answer.gone().await;
        assert_eq!(answer.tokens, Vec::<u32>::new(), "{what}");
    }
    router.end();
}

#[tokio::test]
async fn a_report_of_another_session_is_dropped() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = worker.compute().await;
    let mut old = worker.report(Say::nothing().token(slot, 1));
    old.session += 1;
    worker.send(old).await;
    worker.say(Say::nothing().token(slot, 2)).await;
    assert_eq!(answer.until(1).await, [2]);
    router.end();
}

#[tokio::test]
async fn an_import_that_arrives_unsent_ends_its_session() {
    let router = Router::start(Options::default());
    let mut p = Worker::join(router.addresses[0], "p", Role::Prefill).await;
    let mut d = Worker::join(router.addresses[0], "d", Role::Decode).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (nxt, _) = d.import().await;
    d.say(Say::nothing().arrived(nxt, 1, &[66])).await;
    d.ended().await;
    // The other one computes and keeps it; nothing of the liar reached the client.
    let (cur, ..) = p.compute().await;
    p.say(Say::nothing().token(cur, 1).closed(cur, CloseReason::Stop))
        .await;
    answer.finish().await;
    assert_eq!(answer.tokens, [1]);
    router.end();
}

#[tokio::test]
async fn a_record_replays_to_the_same_decisions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    for _ in 0..2 {
        let router = Router::start(Options {
            record: Some(path.clone()),
            ..Options::default()
        });
        let mut first = Worker::join(router.addresses[0], "first", Role::Mixed).await;
        let (_ticket, mut answer) = router.submit(Request::default()).await;
        let (slot, ..) = first.compute().await;
        first.say(Say::nothing().token(slot, 70)).await;
        answer.until(1).await;
        drop(first);
        let mut second = Worker::join(router.addresses[0], "second", Role::Mixed).await;
        let (slot, ..) = second.compute().await;
        second
            .say(
                Say::nothing()
                    .token(slot, 71)
                    .closed(slot, CloseReason::Stop),
            )
            .await;
        answer.finish().await;
        router.idle().await;
        router.end();
    }
    // The record of the run before is kept.
    for path in [path.clone(), path.with_extension("jsonl.1")] {
        let lines = std::io::BufReader::new(std::fs::File::open(&path).unwrap()).lines();
        let report = replay(lines).unwrap();
        assert!(report.difference.is_none(), "{report:?}");
        assert!(
            !report.is_cut && report.events >= 6 && report.actions >= 2,
            "{report:?}"
        );
    }
}
