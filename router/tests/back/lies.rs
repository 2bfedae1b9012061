//! Workers that say what cannot be. What is wrong of one sequence costs that sequence alone.

use std::time::{Duration, Instant};

use dopd_router::{
    error::Reason,
    metrics::Format,
    wire::worker::{CloseReason, Logprobs, PromptLogprobs, Report, Role},
};

use crate::{
    handoff::{Pair, shipping},
    support::{
        PATIENCE,
        router::{Options, Request, Router},
        worker::{Say, VOCAB, Worker},
    },
};

type Spoil = fn(&mut Report, u32);

/// What is said of the first slot, and what its client is told.
const LIES: [(Spoil, &str); 8] = [
    (
        |r, slot| *r = Say(r.clone()).token(slot, VOCAB).0,
        "made token 1000, the vocabulary has 1000",
    ),
    (
        |r, slot| {
            r.token_slots = vec![slot];
            r.token_counts = vec![9];
            r.tokens = vec![1; 9];
        },
        "made 9 tokens after 0 of at most 8",
    ),
    (
        |r, slot| {
            *r = Say(r.clone()).token(slot, 1).0;
            r.logprobs = Some(Logprobs {
                token_index: vec![0],
                chosen: vec![0.0],
                top_lens: vec![1],
                top_tokens: vec![VOCAB],
                top_logprobs: vec![0.0],
            });
        },
        "has a log probability of token 1000, the vocabulary has 1000",
    ),
    (
        |r, slot| r.prompt_logprobs = Some(run(slot, 2, &[])),
        "told of 1 prompt positions from 2, 1 of 20 comes next",
    ),
    (
        |r, slot| r.prompt_logprobs = Some(run(slot, 0, &[])),
        "told of 1 prompt positions from 0, 1 of 20 comes next",
    ),
    (
        |r, slot| r.prompt_logprobs = Some(run(slot, 1, &[VOCAB])),
        "has a log probability of token 1000, the vocabulary has 1000",
    ),
    (
        |r, slot| r.prompt_logprobs = Some(run(slot, 1, &[5, 6])),
        "told of 2 alternatives, 1 were asked for",
    ),
    (
        |r, slot| {
            r.reused_slots = vec![slot];
            r.reused_tokens = vec![1_000_000];
        },
        "tokens of its prompt",
    ),
];

/// One position of the prompt.
fn run(slot: u32, start: u32, top: &[u32]) -> PromptLogprobs {
    PromptLogprobs {
        slots: vec![slot],
        starts: vec![start],
        lens: vec![1],
        chosen: vec![-1.0],
        top_lens: vec![u32::try_from(top.len()).unwrap()],
        top_tokens: top.to_vec(),
        top_logprobs: vec![-2.0; top.len()],
    }
}

#[tokio::test]
async fn a_lie_about_one_sequence_fails_it_alone() {
    for (spoil, why) in LIES {
        let router = Router::start(Options::default());
        let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
        let request = Request {
            prompt_logprobs: Some(1),
            ..Request::default()
        };
        let (_first, mut failed) = router.submit(request).await;
        let (slot, ..) = worker.compute().await;
        let (_second, mut answer) = router.submit(Request::default()).await;
        let (other, ..) = worker.compute().await;
        let mut report = worker.report(Say::nothing());
        spoil(&mut report, slot);
        let report = Say(report).token(other, 7).0;
        let report = Report {
            token_counts: if report.token_counts.is_empty() {
                Vec::new()
            } else {
                vec![9, 1]
            },
            ..report
        };
        worker.send(report).await;
        worker.close_of(slot).await;
        // Whatever else it says of it does not count, also how it ended.
        let more = Say::nothing().token(slot, 8).token(other, 8);
        worker.say(more.closed(slot, CloseReason::Stop)).await;
        let error = failed.fail().await;
        assert_eq!(error.reason, Reason::WorkerFailed);
        assert!(error.message.ends_with(why), "{}", error.message);
        assert!(failed.tokens.is_empty());
        assert_eq!(answer.until(2).await, [7, 8]);
        let page = router.metrics.render(Format::Text);
        assert!(page.contains("dopd_output_errors_total{model=\"test\"} 1\n"));
        assert!(page.contains("dopd_protocol_errors_total{model=\"test\"} 0\n"));
        router.end();
    }
}

#[tokio::test]
async fn a_lie_about_what_arrived_leaves_the_answer_with_its_source() {
    // Tail beyond the vocabulary; position and tail that do not agree.
    for (pos, tail) in [(1, VOCAB), (3, 100)] {
        let Pair {
            router,
            mut p,
            mut d,
            mut answer,
            cur,
            nxt,
            ticket: _ticket,
        } = shipping(Request::default()).await;
        p.say(Say::nothing().token(cur, 100)).await;
        answer.until(1).await;
        d.say(Say::nothing().arrived(nxt, pos, &[tail]).token(nxt, 9))
            .await;
        d.close_of(nxt).await;
        d.say(Say::nothing().closed(nxt, CloseReason::Asked)).await;
        assert_eq!(p.send_of(cur).await, None, "it stays where it is");
        let last = Say::nothing().token(cur, 101);
        p.say(last.closed(cur, CloseReason::Stop)).await;
        answer.finish().await;
        assert_eq!(answer.tokens, [100, 101]);
        router.end();
    }
}

#[tokio::test]
async fn workers_that_break_the_protocol_make_no_request_a_poison() {
    let router = Router::start(Options::default());
    let (_ticket, mut answer) = router.submit(Request::default()).await;
    for name in ["a", "b"] {
        let mut worker = Worker::join(router.addresses[0], name, Role::Mixed).await;
        worker.compute().await;
        worker.say(Say::nothing().token(99, 1)).await;
        worker.ended().await;
    }
    let mut worker = Worker::join(router.addresses[0], "c", Role::Mixed).await;
    let (slot, ..) = worker.compute().await;
    let last = Say::nothing().token(slot, 5);
    worker.say(last.closed(slot, CloseReason::Stop)).await;
    answer.finish().await;
    let status = router.dispatch.status().await;
    assert_eq!(status.replays_by["worker_broken"], 2, "{status:?}");
    let page = router.metrics.render(Format::Text);
    let ended = "dopd_worker_sessions_ended_total{model=\"test\",cause=\"protocol\"} 2\n";
    assert!(page.contains(ended), "{page}");
    router.end();
}

#[tokio::test]
async fn a_worker_that_loses_pages_is_told_of_and_goes_on() {
    let router = Router::start(Options::default());
    let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
    // All there, then five lost, which the next two reports repeat, then all there.
    for (owned, free) in [(24, 1_000), (24, 995), (24, 995), (20, 999), (24, 1_000)] {
        let mut report = worker.report(Say::nothing());
        (report.pages_owned, report.pages_free) = (owned, free);
        worker.send(report).await;
    }
    let deadline = Instant::now() + PATIENCE;
    while router.dispatch.status().await.workers[0].steps < 5 {
        assert!(Instant::now() < deadline, "the reports are not read");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (_ticket, _answer) = router.submit(Request::default()).await;
    worker.compute().await;
    let page = router.metrics.render(Format::Text);
    let row = "dopd_kv_accounting_errors_total{model=\"test\",worker=\"m\"} 1\n";
    assert!(page.contains(row), "{page}");
    let status = router.dispatch.status().await;
    assert_eq!(
        status.workers[0].pages.owned, 24,
        "as it counts them itself"
    );
    router.end();
}
