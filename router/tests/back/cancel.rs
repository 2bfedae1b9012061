//! Requests that are given up, at every point of their lives and on every thread: no seat is left,
//! and its slot serves the next request. (Hand-offs that are given up: `handoff`.)

use std::time::Duration;

use dopd_router::{
    config::records::LimitsConfig,
    wire::worker::{CloseReason, Role, command},
};

use crate::support::{
    PATIENCE, eventually,
    router::{Options, Request, Router},
    sink::Told,
    worker::{Say, Worker},
};

/// How far a request is when its client goes.
#[derive(Clone, Copy, Debug)]
enum Point {
    Queued,
    Prefill,
    FirstToken,
    Decode,
    /// The report with the last token is on its way.
    LastToken,
}

const POINTS: [Point; 5] = [
    Point::Queued,
    Point::Prefill,
    Point::FirstToken,
    Point::Decode,
    Point::LastToken,
];

/// Takes a request to `point`; its slot, if it has a seat.
async fn bring(point: Point, worker: &mut Worker, made: &mut u32) -> Option<u32> {
    let tokens = match point {
        Point::Queued => return None,
        Point::Prefill => 0,
        Point::FirstToken => 1,
        Point::Decode | Point::LastToken => 3,
    };
    let (slot, ..) = worker.compute().await;
    for token in 0..tokens {
        worker.say(Say::nothing().token(slot, token)).await;
    }
    *made = tokens;
    if matches!(point, Point::LastToken) {
        let last = Say::nothing().token(slot, 9);
        worker.say(last.closed(slot, CloseReason::Stop)).await;
    }
    Some(slot)
}

/// Answers what the router asks for until `slot` is closed or has ended by itself.
async fn give_back(point: Point, worker: &mut Worker, slot: u32) {
    if matches!(point, Point::LastToken) {
        // Its Close may have gone out before the report was read: it is ignored without answer.
        return;
    }
    worker.close_of(slot).await;
    // A late token of a closing slot, then the end.
    let last = Say::nothing().token(slot, 99);
    worker.say(last.closed(slot, CloseReason::Asked)).await;
}

/// The next request, whatever the router says of `old` before.
async fn next_request(router: &Router, worker: &mut Worker, old: Option<u32>) {
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let slot = loop {
        match worker.next().await {
            command::Kind::Open(open) => break open.slot,
            command::Kind::Close(close) if Some(close.slot) == old => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(slot, 0, "the only slot is used again");
    let last = Say::nothing().token(slot, 50);
    worker.say(last.closed(slot, CloseReason::Stop)).await;
    answer.finish().await;
    assert_eq!(answer.tokens, [50]);
}

#[tokio::test]
async fn whenever_a_client_goes_its_seat_is_free_again() {
    for threads in [1, 2] {
        for point in POINTS {
            let router = Router::start(Options {
                threads,
                ..Options::default()
            });
            // With two threads the worker's home is not that of the request.
            let home = router.addresses[threads - 1];
            let mut worker = if matches!(point, Point::Queued) {
                None
            } else {
                Some(Worker::join(home, "m", Role::Mixed).await)
            };
            let (ticket, mut answer) = router.submit(Request::default()).await;
            let (mut slot, mut made) = (None, 0);
            if let Some(worker) = &mut worker {
                slot = bring(point, worker, &mut made).await;
            }
            answer.until(made as usize).await;
            router.cancel_on(0, ticket).await;
            if let (Some(worker), Some(slot)) = (&mut worker, slot) {
                give_back(point, worker, slot).await;
            }
            // The answer may have ended just before; else nothing more is said.
            while let Some(told) = answer.next().await {
                let is_last = matches!(point, Point::LastToken);
                let is_end = matches!(told, Told::Finish(_) | Told::Tokens(..));
                assert!(is_last && is_end, "{point:?}: {told:?}");
            }
            router.idle().await;
            eventually("ended", || router.dispatch.active() == 0).await;
            let mut worker = match worker {
                Some(worker) => worker,
                None => Worker::join(home, "m", Role::Mixed).await,
            };
            next_request(&router, &mut worker, slot).await;
            router.idle().await;
            router.end();
        }
    }
}

/// More than fit the queue of a front thread, while that thread does something else.
const MANY: usize = 5_000;

#[tokio::test]
async fn a_ticket_that_is_dropped_on_another_thread_is_never_lost() {
    let router = Router::start(Options {
        limits: LimitsConfig {
            queue_requests_max: MANY,
            // Else the brain gives them up itself.
            no_worker_wait_ms: 600_000,
            ..LimitsConfig::default()
        },
        ..Options::default()
    });
    let mut tickets = Vec::with_capacity(MANY);
    for _ in 0..MANY {
        tickets.push(router.submit(Request::default()).await.0);
    }
    assert_eq!(router.dispatch.active(), MANY);
    let (busy, until) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let blocked = router.on(0, move |_| {
        begun.send(()).unwrap();
        until.recv_timeout(Duration::from_secs(20)).ok();
    });
    let dropped = async {
        has_begun.await.unwrap();
        drop(tickets);
        busy.send(()).unwrap();
    };
    tokio::join!(blocked, dropped);
    eventually("all cancelled", || router.dispatch.active() == 0).await;
    // The brain hears of each, a moment later.
    let deadline = std::time::Instant::now() + PATIENCE;
    while router.dispatch.status().await.requests_waiting > 0 {
        assert!(std::time::Instant::now() < deadline, "the brain keeps some");
    }
    router.end();
}
