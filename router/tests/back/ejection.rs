//! Ejected workers: what they have goes on elsewhere at once, and what they still say of it does
//! not count.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use dopd_router::{
    config::records::WorkersConfig,
    streams::sink::FinishReason,
    wire::worker::{CloseReason, Report, Role},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    storm::{Mock, Numbers, Tally, check, clean, submit},
    support::{
        router::{Options, Request, Router},
        worker::{Say, Worker},
    },
};

fn watchful(threads: usize, report_interval_ms: u32) -> Router {
    Router::start(Options {
        threads,
        workers: WorkersConfig {
            lease_ms: 60_000,
            report_interval_ms,
            step_timeout_min_ms: 100,
            ..WorkersConfig::default()
        },
        ..Options::default()
    })
}

/// The worker's home and that of the request are the same thread, or not.
#[tokio::test]
async fn late_output_of_an_ejected_worker_does_not_count() {
    for threads in [1, 2] {
        // It beats ten times as often as it is to: nobody takes a busy machine for silence.
        let router = watchful(threads, 200);
        let home = router.addresses[threads - 1];
        let beat = Duration::from_millis(20);
        let mut hung = Worker::join(home, "hung", Role::Mixed).await;
        let (_ticket, mut answer) = router.submit(Request::default()).await;
        let (slot, ..) = hung.compute().await;
        hung.say(Say::nothing().token(slot, 70)).await;
        answer.until(1).await;
        // Its step hangs; nobody else is there.
        let stepping = Report {
            next_step_us: 1_000,
            running: 1,
            ..Report::default()
        };
        let beating = hung.beat(Say(stepping), beat);
        router.until_state("hung", Some("suspect")).await;
        // It wakes up: two tokens and an end of a seat that was given up.
        let late = Say::nothing().token(slot, 666).token(slot, 667);
        hung.close_of(slot).await;
        drop(beating);
        hung.say(late.closed(slot, CloseReason::Stop)).await;
        // Back, it gets its own work again, from what the client has.
        let (slot, _, so_far) = hung.compute().await;
        assert_eq!(so_far, [70], "{threads} threads");
        let last = Say::nothing().token(slot, 71);
        hung.say(last.closed(slot, CloseReason::Stop)).await;
        assert_eq!(answer.finish().await, FinishReason::Stop);
        assert_eq!(answer.tokens, [70, 71]);
        let status = router.dispatch.status().await;
        assert_eq!(status.ejections_by["stuck"], 1, "{status:?}");
        assert_eq!(status.replays_by["worker_stuck"], 1, "{status:?}");
        router.end();
    }
}

/// A way to a router that can be stalled: what comes meanwhile comes later, and in order.
struct Stalling {
    address: SocketAddr,
    stalled: watch::Sender<bool>,
}

impl Stalling {
    async fn to(router: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stalled, is_stalled) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((worker, _)) = listener.accept().await {
                let router = TcpStream::connect(router).await.unwrap();
                let (from_worker, to_worker) = worker.into_split();
                let (from_router, to_router) = router.into_split();
                tokio::spawn(pass(from_worker, to_router, is_stalled.clone()));
                tokio::spawn(pass(from_router, to_worker, is_stalled.clone()));
            }
        });
        Self { address, stalled }
    }

    /// Lets nothing through for so long.
    fn stall(&self, time: Duration) {
        let stalled = self.stalled.clone();
        stalled.send_replace(true);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            stalled.send_replace(false);
        });
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut is_stalled: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if is_stalled.wait_for(|is_stalled| !is_stalled).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Real mock workers whose tokens depend on the KV that was moved, behind links that stall for
/// longer than it takes to be ejected: each answer is the model's, whatever comes late.
#[tokio::test]
async fn answers_are_the_models_whoever_is_ejected() {
    let router = watchful(2, 50);
    let mut links = Vec::new();
    let mut mocks = Vec::new();
    for (index, name) in ["p0", "p1", "d0", "d1"].into_iter().enumerate() {
        let link = Stalling::to(router.addresses[index % 2]).await;
        let role = if index < 2 {
            Role::Prefill
        } else {
            Role::Decode
        };
        mocks.push(Mock::start(name, role, link.address));
        links.push(link);
    }
    let mut numbers = Numbers(3);
    let mut tally = Tally::default();
    let mut running = VecDeque::new();
    for count in 1..=160 {
        running.push_back(submit(&router, &mut numbers).await);
        if count % 20 == 0 {
            links[numbers.below(4)].stall(Duration::from_millis(450));
        }
        if running.len() >= 30
            && let Some(first) = running.pop_front()
        {
            check(&router, first, &mut tally).await;
        }
    }
    // One that is ejected for sure, with work: until then the machine may have been too quick.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = router.dispatch.status().await;
        let replays = status.replays_by["worker_silent"];
        if status.ejections_by["silent"] > 0 && replays > 0 {
            break;
        }
        assert!(Instant::now() < deadline, "nobody was ejected: {status:?}");
        links[numbers.below(4)].stall(Duration::from_millis(450));
        for _ in 0..10 {
            running.push_back(submit(&router, &mut numbers).await);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for rest in running {
        check(&router, rest, &mut tally).await;
    }
    assert!(tally.finished >= 100, "{tally:?}");
    clean(&router, mocks.len()).await;
    assert_eq!(router.dispatch.active(), 0);
    router.end();
}
