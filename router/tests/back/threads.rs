//! Two front threads: a stream on one, its worker's link on the other.

use dopd_router::{
    streams::sink::FinishReason,
    wire::worker::{CloseReason, Role},
};

use crate::support::{
    router::{Options, Request, Router},
    worker::{Say, Worker, grant},
};

fn two() -> Router {
    Router::start(Options {
        threads: 2,
        ..Options::default()
    })
}

#[tokio::test]
async fn tokens_cross_to_the_thread_of_their_stream() {
    let router = two();
    let mut worker = Worker::join(router.addresses[1], "m", Role::Mixed).await;
    let (_a, mut far) = router.submit_on(0, Request::default()).await.unwrap();
    let (_b, mut near) = router
        .submit_on(
            1,
            Request {
                id: "r2",
                ..Request::default()
            },
        )
        .await
        .unwrap();
    let mut slots = [0; 2];
    for _ in 0..2 {
        let open = worker.open().await;
        slots[usize::from(open.request_id == "r2")] = open.slot;
    }
    let [a, b] = slots;
    for token in 0..6 {
        worker
            .say(Say::nothing().token(b, 100 + token).token(a, 200 + token))
            .await;
    }
    assert_eq!(near[0].until(6).await, [100, 101, 102, 103, 104, 105]);
    assert_eq!(far[0].until(6).await, [200, 201, 202, 203, 204, 205]);
    let say = Say::nothing().token(a, 1).token(b, 2);
    worker
        .say(
            say.closed(a, CloseReason::Stop)
                .closed(b, CloseReason::Length),
        )
        .await;
    assert_eq!(far[0].finish().await, FinishReason::Stop);
    assert_eq!(near[0].finish().await, FinishReason::Length);
    router.end();
}

#[tokio::test]
async fn a_hand_off_between_threads() {
    let router = two();
    for stream in [0, 1] {
        for (prefill, decode) in [(0, 1), (1, 0), (1, 1)] {
            let mut p = Worker::join(router.addresses[prefill], "p", Role::Prefill).await;
            let mut d = Worker::join(router.addresses[decode], "d", Role::Decode).await;
            let (ticket, mut answers) = router.submit_on(stream, Request::default()).await.unwrap();
            let (nxt, _) = d.import().await;
            d.say(Say::nothing().opened(nxt)).await;
            let (cur, ..) = p.compute().await;
            assert_eq!(p.send_of(cur).await, Some(grant(nxt)));
            p.say(Say::nothing().token(cur, 100)).await;
            answers[0].until(1).await;
            d.say(Say::nothing().arrived(nxt, 2, &[100, 101]).token(nxt, 102))
                .await;
            d.say(Say::nothing().token(nxt, 103)).await;
            p.close_of(cur).await;
            p.say(
                Say::nothing()
                    .token(cur, 101)
                    .closed(cur, CloseReason::Asked),
            )
            .await;
            d.say(
                Say::nothing()
                    .token(nxt, 104)
                    .closed(nxt, CloseReason::Stop),
            )
            .await;
            answers[0].finish().await;
            assert_eq!(answers[0].tokens, [100, 101, 102, 103, 104]);
            drop(ticket);
            router.idle().await;
        }
    }
    router.end();
}

#[tokio::test]
async fn cancel_and_stop_cross_over() {
    let router = two();
    let mut worker = Worker::join(router.addresses[1], "m", Role::Mixed).await;
    let request = Request {
        stop_after: 1,
        ..Request::default()
    };
    let (_ticket, mut stops) = router.submit_on(0, request).await.unwrap();
    let (slot, ..) = worker.compute().await;
    worker.say(Say::nothing().token(slot, 1)).await;
    worker.close_of(slot).await;
    stops[0].gone().await;
    worker
        .say(
            Say::nothing()
                .token(slot, 2)
                .closed(slot, CloseReason::Asked),
        )
        .await;
    router.idle().await;
    let (ticket, mut cancelled) = router.submit_on(0, Request::default()).await.unwrap();
    let (slot, ..) = worker.compute().await;
    router.cancel_on(0, ticket).await;
    worker.close_of(slot).await;
    cancelled[0].gone().await;
    worker
        .say(Say::nothing().closed(slot, CloseReason::Asked))
        .await;
    router.idle().await;
    assert_eq!(router.dispatch.active(), 0);
    router.end();
}

#[tokio::test]
async fn a_worker_lost_on_the_other_thread_is_replayed() {
    let router = two();
    let mut first = Worker::join(router.addresses[1], "first", Role::Mixed).await;
    let (_ticket, mut answers) = router.submit_on(0, Request::default()).await.unwrap();
    let (slot, ..) = first.compute().await;
    first.say(Say::nothing().token(slot, 5)).await;
    answers[0].until(1).await;
    drop(first);
    let mut second = Worker::join(router.addresses[0], "second", Role::Mixed).await;
    let (slot, _, so_far) = second.compute().await;
    assert_eq!(so_far, [5]);
    second
        .say(
            Say::nothing()
                .token(slot, 6)
                .closed(slot, CloseReason::Stop),
        )
        .await;
    answers[0].finish().await;
    assert_eq!(answers[0].tokens, [5, 6]);
    router.end();
}
