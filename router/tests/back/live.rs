//! Workers that are there and do not work: silent ones, and such whose step does not end.

use std::{net::SocketAddr, time::Duration};

use dopd_router::{
    config::records::WorkersConfig,
    wire::worker::{CloseReason, Hello, Report, Role},
};

use crate::support::{
    router::{Options, Request, Router},
    worker::{Say, Worker, hello},
};

use tokio::{
    io::{AsyncReadExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// Time between reports.
const BEAT: Duration = Duration::from_millis(20);

/// A router that sees a hang within 100 ms; a silent session lives for `lease_ms`.
fn watchful(lease_ms: u32) -> Router {
    Router::start(Options {
        workers: WorkersConfig {
            lease_ms,
            report_interval_ms: 20,
            step_timeout_min_ms: 100,
            ..WorkersConfig::default()
        },
        ..Options::default()
    })
}

/// In the middle of a step of 1 ms.
fn stepping() -> Say {
    Say(Report {
        next_step_us: 1_000,
        running: 1,
        ..Report::default()
    })
}

#[tokio::test]
async fn a_worker_whose_step_hangs_gets_no_work_until_it_moves() {
    let router = watchful(60_000);
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let beating = worker.beat(stepping(), BEAT);
    router.until_state("m", Some("suspect")).await;
    // Heartbeats do not make it well.
    for _ in 0..10 {
        tokio::time::sleep(BEAT).await;
        assert_eq!(router.dispatch.status().await.workers[0].state, "suspect");
    }
    drop(beating);
    let _beating = worker.beat(Say::nothing(), BEAT);
    router.until_state("m", Some("ready")).await;
    let (_ticket, _answer) = router.submit(Request::default()).await;
    worker.compute().await;
    router.end();
}

#[tokio::test]
async fn a_step_that_never_ends_ends_the_session_and_is_remembered() {
    // Fifty beats long, or the second session may end by silence on a busy machine.
    let router = watchful(1_000);
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let beating = worker.beat(stepping(), BEAT);
    worker.ended().await;
    drop(beating);
    router.until_state("m", None).await;
    // The same process dials again, still in that step.
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let beating = worker.beat(stepping(), BEAT);
    router.until_state("m", Some("suspect")).await;
    let (ticket, _answer) = router.submit(Request::default()).await;
    for _ in 0..20 {
        tokio::time::sleep(BEAT).await;
        let status = router.dispatch.status().await;
        assert_eq!(status.workers[0].state, "suspect", "nor is it ended again");
        assert_eq!(status.requests_waiting, 1, "it got work");
    }
    // A new process of that name is another one.
    drop(beating);
    drop(worker);
    router.until_state("m", None).await;
    let fresh = Hello {
        incarnation: 2,
        ..hello("m", Role::Mixed)
    };
    let mut worker = Worker::try_join(router.addresses[0], fresh).await.unwrap();
    let _beating = worker.beat(Say::nothing(), BEAT);
    worker.compute().await;
    router.cancel_on(0, ticket).await;
    router.end();
}

#[tokio::test]
async fn an_idle_loop_that_takes_no_commands_is_stuck() {
    let router = watchful(60_000);
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let _beating = worker.beat(Say::nothing(), BEAT);
    router.until_state("m", Some("ready")).await;
    let (ticket, _answer) = router.submit(Request::default()).await;
    router.until_state("m", Some("suspect")).await;
    let (slot, ..) = worker.compute().await;
    router.cancel_on(0, ticket).await;
    worker.close_of(slot).await;
    worker
        .say(Say::nothing().closed(slot, CloseReason::Asked))
        .await;
    router.until_state("m", Some("ready")).await;
    router.end();
}

#[tokio::test]
async fn a_silent_worker_gets_no_work_until_it_is_heard() {
    let router = watchful(60_000);
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    router.until_state("m", Some("suspect")).await;
    worker.say(Say::nothing()).await;
    let _beating = worker.beat(Say::nothing(), BEAT);
    router.until_state("m", Some("ready")).await;
    router.end();
}

#[tokio::test]
async fn silence_ends_the_session_at_its_lease() {
    let router = watchful(100);
    let worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    worker.ended().await;
    router.until_state("m", None).await;
    router.end();
}

/// A link that can be cut: takes one connection and passes it on to `router`.
struct Link {
    address: SocketAddr,
    /// Both ends, once it was cut.
    cut: tokio::task::JoinHandle<(TcpStream, TcpStream)>,
    cuts: tokio::sync::oneshot::Sender<()>,
}

impl Link {
    async fn to(router: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cut) = tokio::sync::oneshot::channel();
        let cut = tokio::spawn(async move {
            let (mut worker, _) = listener.accept().await.unwrap();
            let mut router = TcpStream::connect(router).await.unwrap();
            tokio::select! {
                _ = copy_bidirectional(&mut worker, &mut router) => panic!("not cut, but ended"),
                cut = cut => cut.unwrap(),
            }
            (worker, router)
        });
        Self { address, cut, cuts }
    }

    /// From now on nothing passes. Both ends stay open as long as they are held.
    async fn cut(self) -> (TcpStream, TcpStream) {
        self.cuts.send(()).unwrap();
        self.cut.await.unwrap()
    }
}

#[tokio::test]
async fn a_reset_ends_the_session_at_once() {
    // A lease of two minutes: only the reset can end it.
    let router = Router::start(Options::default());
    let link = Link::to(router.addresses[0]).await;
    let _worker = Worker::join(link.address, "m", Role::Mixed).await;
    router.until_state("m", Some("ready")).await;
    let (_to_worker, to_router) = link.cut().await;
    to_router.set_zero_linger().unwrap();
    drop(to_router);
    router.until_state("m", None).await;
    router.end();
}

#[tokio::test]
async fn a_half_open_link_ends_the_session_at_its_lease() {
    let router = watchful(1_000);
    let link = Link::to(router.addresses[0]).await;
    let mut worker = Worker::join(link.address, "m", Role::Mixed).await;
    let _beating = worker.beat(Say::nothing(), BEAT);
    router.until_state("m", Some("ready")).await;
    let _held = link.cut().await;
    router.until_state("m", None).await;
    router.end();
}

#[tokio::test]
#[ignore = "takes the 15 s that HTTP/2 keepalive takes"]
async fn a_half_open_connection_is_closed_by_keepalive() {
    let router = watchful(200);
    let link = Link::to(router.addresses[0]).await;
    let _worker = Worker::join(link.address, "m", Role::Mixed).await;
    let (_to_worker, mut to_router) = link.cut().await;
    let begun = std::time::Instant::now();
    let mut rest = Vec::new();
    // The end of the stream, the ping that nobody answers, then the end.
    tokio::time::timeout(Duration::from_secs(20), to_router.read_to_end(&mut rest))
        .await
        .expect("still open")
        .ok();
    assert!(begun.elapsed() < Duration::from_secs(16));
    router.end();
}
