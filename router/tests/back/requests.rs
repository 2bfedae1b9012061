//! Requests on one worker: the usual path, and every way in which a request ends.

use std::time::Duration;

use dopd_router::{
    config::records::LimitsConfig,
    error::Reason,
    streams::{request::prompt_hash, sink::FinishReason},
    wire::worker::{CloseReason, Role},
};

use crate::support::{
    eventually,
    router::{Options, Request, Router},
    worker::{Say, Worker},
};

#[tokio::test]
async fn one_mixed_worker_answers() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    eventually("ready", || router.dispatch.is_ready()).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let open = worker.open().await;
    assert_eq!(
        open.pages, 2,
        "20 prompt and 8 answer tokens in pages of 16"
    );
    assert_eq!(open.prompt_tokens, 20);
    assert_eq!(open.prompt_hash, prompt_hash(&(1..=20).collect::<Vec<_>>()));
    assert_eq!(open.request_id, "r1");
    assert_eq!(open.sampling.unwrap().seed, 7);
    assert_eq!(open.limits.unwrap().max_tokens, 8);
    for token in [40, 41, 42] {
        worker.say(Say::nothing().token(open.slot, token)).await;
    }
    assert_eq!(answer.until(3).await, [40, 41, 42]);
    assert_eq!(router.dispatch.active(), 1);
    let last = Say::nothing().token(open.slot, 43);
    worker.say(last.closed(open.slot, CloseReason::Stop)).await;
    assert_eq!(answer.finish().await, FinishReason::Stop);
    assert_eq!(answer.tokens, [40, 41, 42, 43]);
    eventually("ended", || router.dispatch.active() == 0).await;
    router.end();
}

#[tokio::test]
async fn several_tokens_of_a_step_keep_their_order() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let (_a, mut first) = router.submit(Request::default()).await;
    let (_b, mut second) = router
        .submit(Request {
            id: "r2",
            ..Request::default()
        })
        .await;
    let (one, ..) = worker.compute().await;
    let (two, ..) = worker.compute().await;
    let mut say = Say::nothing();
    say.0.token_slots = vec![two, one];
    say.0.token_counts = vec![3, 2];
    say.0.tokens = vec![1, 2, 3, 4, 5];
    worker.say(say).await;
    assert_eq!(second.until(3).await, [1, 2, 3]);
    assert_eq!(first.until(2).await, [4, 5]);
    router.end();
}

#[tokio::test]
async fn choices_are_sequences_of_their_own() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let request = Request {
        choices: 2,
        ..Request::default()
    };
    let (_ticket, mut answers) = router.submit_on(0, request).await.unwrap();
    let (a, b) = (worker.open().await, worker.open().await);
    assert_eq!(a.sampling.unwrap().choice, 0);
    assert_eq!(b.sampling.unwrap().choice, 1);
    let say = Say::nothing().token(a.slot, 5).token(b.slot, 6);
    worker.say(say.closed(b.slot, CloseReason::Length)).await;
    assert_eq!(answers[1].finish().await, FinishReason::Length);
    assert_eq!(answers[1].tokens, [6]);
    assert_eq!(answers[0].until(1).await, [5]);
    assert_eq!(router.dispatch.active(), 1);
    router.end();
}

#[tokio::test]
async fn a_sink_that_wants_no_more_closes_its_seat() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let request = Request {
        stop_after: 2,
        ..Request::default()
    };
    let (_ticket, mut answer) = router.submit(request).await;
    let (slot, ..) = worker.compute().await;
    worker.say(Say::nothing().token(slot, 1)).await;
    worker.say(Say::nothing().token(slot, 2)).await;
    worker.say(Say::nothing().token(slot, 3)).await;
    worker.close_of(slot).await;
    worker
        .say(Say::nothing().closed(slot, CloseReason::Asked))
        .await;
    answer.gone().await;
    assert_eq!(answer.tokens, [1, 2]);
    assert_eq!(router.dispatch.active(), 0);
    // The slot is free again.
    router.idle().await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (again, ..) = worker.compute().await;
    assert_eq!(again, slot);
    worker.say(Say::nothing().token(again, 9)).await;
    assert_eq!(answer.until(1).await, [9]);
    router.end();
}

#[tokio::test]
async fn a_dropped_ticket_cancels() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    for on_its_thread in [true, false] {
        let (ticket, mut answer) = router.submit(Request::default()).await;
        let (slot, ..) = worker.compute().await;
        worker.say(Say::nothing().token(slot, 1)).await;
        answer.until(1).await;
        if on_its_thread {
            router.cancel_on(0, ticket).await;
        } else {
            drop(ticket);
        }
        worker.close_of(slot).await;
        answer.gone().await;
        worker
            .say(
                Say::nothing()
                    .token(slot, 2)
                    .closed(slot, CloseReason::Asked),
            )
            .await;
        eventually("ended", || router.dispatch.active() == 0).await;
    }
    // A ticket that outlives its answer cancels nothing.
    let (ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = worker.compute().await;
    worker
        .say(
            Say::nothing()
                .token(slot, 1)
                .closed(slot, CloseReason::Stop),
        )
        .await;
    answer.finish().await;
    router.cancel_on(0, ticket).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = worker.compute().await;
    worker.say(Say::nothing().token(slot, 4)).await;
    assert_eq!(answer.until(1).await, [4]);
    router.end();
}

#[tokio::test]
async fn without_a_worker_it_fails_in_time() {
    let limits = LimitsConfig {
        no_worker_wait_ms: 30,
        ..LimitsConfig::default()
    };
    let router = Router::start(Options {
        limits,
        ..Options::default()
    });
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let error = answer.fail().await;
    assert_eq!(error.reason, Reason::NoWorker);
    assert!(error.message.contains("30 ms"), "{error}");
    assert!(!router.dispatch.is_ready());
    router.end();
}

#[tokio::test]
async fn the_deadline_ends_it_wherever_it_is() {
    let router = Router::start(Options::default());
    let short = Request {
        timeout: Duration::from_millis(50),
        ..Request::default()
    };
    let (_ticket, mut waiting) = router.submit(short.clone()).await;
    assert_eq!(waiting.fail().await.reason, Reason::DeadlineExceeded);
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let request = Request {
        timeout: Duration::from_secs(2),
        ..short
    };
    let (_ticket, mut running) = router.submit(request).await;
    let (slot, ..) = worker.compute().await;
    assert_eq!(running.fail().await.reason, Reason::DeadlineExceeded);
    worker.close_of(slot).await;
    router.end();
}

#[tokio::test]
async fn what_fits_no_worker_is_refused() {
    let router = Router::start(Options::default());
    let _worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    eventually("ready", || router.dispatch.is_ready()).await;
    let request = Request {
        max_tokens: 5_000,
        ..Request::default()
    };
    let (_ticket, mut answer) = router.submit(request).await;
    assert_eq!(answer.fail().await.reason, Reason::ContextLengthExceeded);
    router.end();
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let limits = LimitsConfig {
        queue_requests_max: 1,
        ..LimitsConfig::default()
    };
    let router = Router::start(Options {
        limits,
        ..Options::default()
    });
    let (_a, _waiting) = router.submit(Request::default()).await;
    let (_b, mut refused) = router
        .submit(Request {
            id: "r2",
            ..Request::default()
        })
        .await;
    let error = refused.fail().await;
    assert_eq!(error.reason, Reason::QueueFull);
    assert!(error.retry_after.is_some());
    let status = router.dispatch.status().await;
    assert_eq!((status.requests_waiting, status.tokens_waiting), (1, 20));
    router.end();
}

#[tokio::test]
async fn draining_refuses_new_and_lets_old_ones_end() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = worker.compute().await;
    router.dispatch.drain();
    let refused = router.submit_on(0, Request::default()).await.err().unwrap();
    assert_eq!(refused.reason, Reason::Draining);
    worker
        .say(
            Say::nothing()
                .token(slot, 3)
                .closed(slot, CloseReason::Length),
        )
        .await;
    assert_eq!(answer.finish().await, FinishReason::Length);
    assert_eq!(answer.tokens, [3]);
    eventually("ended", || router.dispatch.active() == 0).await;
    router.end();
}

#[tokio::test]
async fn shutdown_fails_what_runs_and_ends_every_thread() {
    let router = Router::start(Options {
        threads: 2,
        ..Options::default()
    });
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    worker.compute().await;
    router.end();
    assert_eq!(answer.fail().await.reason, Reason::Draining);
    worker.ended().await;
}

#[tokio::test]
async fn an_engine_error_names_what_the_worker_said() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    let (slot, ..) = worker.compute().await;
    let mut say = Say::nothing().closed(slot, CloseReason::Error);
    say.0.closed_messages.push("out of luck".to_owned());
    worker.say(say).await;
    let error = answer.fail().await;
    assert_eq!(error.reason, Reason::WorkerFailed);
    assert!(error.message.contains("out of luck"), "{error}");
    router.end();
}
