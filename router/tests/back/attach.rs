//! Who may join: token, hello, geometry; who is replaced; who is lost.

use std::time::Duration;

use dopd_router::{
    config::records::WorkersConfig,
    wire::worker::{
        AttachRequest, CloseReason, Hello, KvGeometry, Role, attach_request, attach_response,
    },
};

use crate::support::{
    eventually,
    router::{Options, Request, Router, TOKEN},
    worker::{Say, VOCAB, Worker, answer, dial, hello},
};

#[tokio::test]
async fn a_wrong_join_token_is_refused() {
    let router = Router::start(Options::default());
    for token in ["", "wrong", "test-toke", "test-token2"] {
        let status = dial(router.addresses[0], token).await.err().unwrap();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{token:?}");
        assert!(status.message().contains("join token"), "{status}");
    }
    assert!(router.dispatch.status().await.workers.is_empty());
    router.end();
}

#[tokio::test]
async fn an_idle_worker_hears_heartbeats() {
    let router = Router::start(Options::default());
    let (requests, mut responses) = dial(router.addresses[0], TOKEN).await.unwrap();
    let kind = Some(attach_request::Kind::Hello(hello("w", Role::Mixed)));
    requests.send(AttachRequest { kind }).await.unwrap();
    let Some(attach_response::Kind::Welcome(welcome)) = answer(&mut responses).await else {
        panic!("no welcome");
    };
    assert_eq!(
        (welcome.lease_ms, welcome.report_interval_ms),
        (120_000, 10_000)
    );
    for _ in 0..2 {
        match answer(&mut responses).await {
            Some(attach_response::Kind::Cmd(cmd)) => {
                assert_eq!((cmd.session, cmd.commands.len()), (welcome.session, 0));
            }
            other => panic!("{other:?}"),
        }
    }
    router.end();
}

#[tokio::test]
async fn a_status_shows_what_a_worker_said_of_itself() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "w-1.a_b", Role::Decode).await;
    let mut say = Say::nothing();
    say.0.step_us = 900;
    say.0.pages_fenced = 24;
    let mut report = worker.report(say);
    report.pages_free = 1_000;
    worker.send(report).await;
    eventually("ready", || router.dispatch.is_ready()).await;
    let shown = loop {
        let status = router.dispatch.status().await;
        if status
            .workers
            .first()
            .is_some_and(|worker| worker.steps == 1)
        {
            break status.workers[0].clone();
        }
    };
    assert_eq!(
        (shown.id.as_str(), shown.role.as_str()),
        ("w-1.a_b", "decode")
    );
    assert_eq!(
        (shown.state.as_str(), shown.pid, shown.step_us),
        ("ready", 4_711, 900)
    );
    assert_eq!(
        (shown.pages.total, shown.pages.free, shown.pages.fenced),
        (1_024, 1_000, 24)
    );
    assert_eq!(shown.pages.owned, 0);
    router.end();
}

/// A change to a hello that fits.
type Change = fn(&mut Hello);

fn geometry(hello: &mut Hello) -> &mut KvGeometry {
    hello.geometry.as_mut().unwrap()
}

/// What is wrong with a hello by itself, and what the refusal says.
const BOUNDS: [(&str, Change); 17] = [
    ("worker name", |h| h.worker = String::new()),
    ("worker name", |h| "a b".clone_into(&mut h.worker)),
    ("worker name", |h| h.worker = "x".repeat(65)),
    ("no role", |h| h.role = 0),
    ("pages_total is 0", |h| h.pages_total = 0),
    ("max_num_seqs is 65537", |h| h.max_num_seqs = 65_537),
    ("max_batch_tokens is 0", |h| h.max_batch_tokens = 0),
    ("max_model_len is 0", |h| h.max_model_len = 0),
    ("vocab_size is 0", |h| h.vocab_size = 0),
    ("geometry is missing", |h| h.geometry = None),
    ("model_hash has 31 bytes", |h| {
        geometry(h).model_hash = vec![7; 31];
    }),
    ("page_size is 0", |h| geometry(h).page_size = 0),
    ("layout has 0 bytes", |h| geometry(h).layout = String::new()),
    ("transports has 0 names", |h| h.transports.clear()),
    ("data_address has 0 bytes", |h| {
        h.data_address = String::new();
    }),
    ("timings_json", |h| "{}".clone_into(&mut h.timings_json)),
    ("run the same version", |h| {
        "0.0.1".clone_into(&mut h.version);
    }),
];

#[tokio::test]
async fn a_hello_out_of_bounds_is_refused_by_name() {
    let router = Router::start(Options::default());
    for (named, change) in BOUNDS {
        let mut hello = hello("w", Role::Mixed);
        change(&mut hello);
        let refusal = Worker::try_join(router.addresses[0], hello)
            .await
            .err()
            .expect(named);
        assert!(
            refusal.message.contains(named),
            "{named}: {}",
            refusal.message
        );
        assert!(!refusal.retry, "{named}");
    }
    assert!(router.dispatch.status().await.workers.is_empty());
    router.end();
}

/// How a hello differs from the first worker's, and what the refusal says.
const FLEET: [(&str, Change); 10] = [
    (r#"dtype is "f8", the fleet has "mock""#, |h| {
        "f8".clone_into(&mut geometry(h).dtype);
    }),
    (r#"layout is "x", the fleet has "page_major_nhd""#, |h| {
        "x".clone_into(&mut geometry(h).layout);
    }),
    ("model_hash is 0909", |h| {
        geometry(h).model_hash = vec![9; 32];
    }),
    ("page_size is 32, the fleet has 16", |h| {
        geometry(h).page_size = 32;
    }),
    ("num_layers is 2, the fleet has 1", |h| {
        geometry(h).num_layers = 2;
    }),
    ("num_kv_heads is 3, the fleet has 1", |h| {
        geometry(h).num_kv_heads = 3;
    }),
    ("head_dim is 4, the fleet has 1", |h| {
        geometry(h).head_dim = 4;
    }),
    ("tensor_parallel is 5, the fleet has 1", |h| {
        geometry(h).tensor_parallel = 5;
    }),
    ("page_bytes is 64, the fleet has 128", |h| {
        geometry(h).page_bytes = 64;
    }),
    ("vocab_size is 10, the fleet has 1000", |h| {
        h.vocab_size = 10;
    }),
];

#[tokio::test]
async fn a_worker_that_does_not_fit_the_fleet_hears_both_sides() {
    let router = Router::start(Options::default());
    let first = Worker::join(router.addresses[0], "first", Role::Mixed).await;
    for (named, change) in FLEET {
        let mut hello = hello("second", Role::Mixed);
        change(&mut hello);
        let refusal = Worker::try_join(router.addresses[0], hello)
            .await
            .err()
            .expect(named);
        assert!(
            refusal.message.contains(named),
            "{named}: {}",
            refusal.message
        );
        assert!(
            refusal.message.contains(r#"worker "second""#),
            "{}",
            refusal.message
        );
        assert!(
            refusal.message.contains(r#"first worker "first""#),
            "{}",
            refusal.message
        );
    }
    // Several differences are all named.
    let mut other = hello("second", Role::Mixed);
    geometry(&mut other).page_size = 32;
    geometry(&mut other).page_bytes = 256;
    let refusal = Worker::try_join(router.addresses[0], other.clone())
        .await
        .err()
        .unwrap();
    assert!(
        refusal.message.contains("page_size is 32"),
        "{}",
        refusal.message
    );
    assert!(
        refusal.message.contains("page_bytes is 256"),
        "{}",
        refusal.message
    );
    // The last one to leave takes the fleet's geometry with it.
    drop(first);
    eventually("gone", || !router.dispatch.is_ready()).await;
    Worker::try_join(router.addresses[0], other)
        .await
        .expect("an empty fleet takes it");
    router.end();
}

#[tokio::test]
async fn another_model_than_the_routers_is_refused() {
    let router = Router::start(Options {
        model_hash: Some([8; 32]),
        vocab_size: Some(VOCAB + 1),
        ..Options::default()
    });
    let refusal = Worker::try_join(router.addresses[0], hello("w", Role::Mixed)).await;
    let message = refusal.err().unwrap().message;
    assert!(message.contains(&"07".repeat(32)), "{message}");
    assert!(message.contains(&"08".repeat(32)), "{message}");
    assert!(
        message.contains("vocab_size is 1000, the router has 1001"),
        "{message}"
    );
    router.end();
}

#[tokio::test]
async fn one_worker_too_many_may_come_again() {
    let workers = WorkersConfig {
        workers_max: 1,
        ..Options::default().workers
    };
    let router = Router::start(Options {
        workers,
        ..Options::default()
    });
    let _first = Worker::join(router.addresses[0], "first", Role::Mixed).await;
    let refusal = Worker::try_join(router.addresses[0], hello("second", Role::Mixed)).await;
    let refusal = refusal.err().unwrap();
    assert!(
        refusal.retry && refusal.message.contains("workers_max is 1"),
        "{refusal:?}"
    );
    router.end();
}

#[tokio::test]
async fn the_first_message_must_be_a_hello() {
    let router = Router::start(Options::default());
    let (requests, mut responses) = dial(router.addresses[0], TOKEN).await.unwrap();
    let report = attach_request::Kind::Report(Say::nothing().0);
    requests
        .send(AttachRequest { kind: Some(report) })
        .await
        .unwrap();
    match answer(&mut responses).await {
        Some(attach_response::Kind::Refusal(refusal)) => {
            assert!(refusal.message.contains("not a hello"), "{refusal:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(answer(&mut responses).await.is_none());
    router.end();
}

#[tokio::test]
async fn a_worker_of_the_same_name_takes_the_place_of_the_old() {
    let router = Router::start(Options {
        threads: 2,
        ..Options::default()
    });
    let mut old = Worker::join(router.addresses[0], "w", Role::Mixed).await;
    let (_ticket, mut client) = router.submit(Request::default()).await;
    let (slot, ..) = old.compute().await;
    old.say(Say::nothing().token(slot, 50)).await;
    assert_eq!(client.until(1).await, [50]);
    // On the other front thread, to make it harder.
    let mut new = Worker::join(router.addresses[1], "w", Role::Mixed).await;
    assert_ne!(new.session, old.session);
    let (slot, prompt, so_far) = new.compute().await;
    assert_eq!((prompt.len(), so_far), (20, vec![50]));
    old.ended().await;
    let say = Say::nothing().token(slot, 51);
    new.say(say.closed(slot, CloseReason::Stop)).await;
    client.finish().await;
    assert_eq!(client.tokens, [50, 51]);
    assert_eq!(router.dispatch.status().await.workers.len(), 1);
    router.end();
}

#[tokio::test]
async fn silence_is_suspect_then_fatal() {
    let workers = WorkersConfig {
        lease_ms: 1_500,
        report_interval_ms: 20,
        ..WorkersConfig::default()
    };
    let router = Router::start(Options {
        workers,
        ..Options::default()
    });
    let silent = Worker::join(router.addresses[0], "silent", Role::Mixed).await;
    eventually("ready", || router.dispatch.is_ready()).await;
    let started = std::time::Instant::now();
    eventually("suspect", || !router.dispatch.is_ready()).await;
    let state = router
        .dispatch
        .status()
        .await
        .workers
        .first()
        .map(|w| w.state.clone());
    // On a slow machine the lease may be over by now.
    assert!(
        matches!(state.as_deref(), Some("suspect") | None),
        "{state:?}"
    );
    silent.ended().await;
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "the lease was cut short"
    );
    assert!(router.dispatch.status().await.workers.is_empty());
    router.end();
}
