//! Log probabilities of prompts: to the sink in order, before the tokens of the same report, and
//! never more than were asked for.

use dopd_router::{
    streams::sink::TokenLogprobs,
    wire::worker::{CloseReason, PromptLogprobs, Role},
};

use crate::{
    handoff::{Pair, shipping},
    support::{
        PATIENCE,
        router::{Options, Request, Router},
        sink::Told,
        worker::{Say, Worker},
    },
};

fn asking() -> Request {
    Request {
        prompt_logprobs: Some(1),
        ..Request::default()
    }
}

/// Positions `start` and on of `slot`, one alternative each.
fn told(slot: u32, start: u32, len: u32) -> PromptLogprobs {
    let positions: Vec<u32> = (start..start + len).collect();
    PromptLogprobs {
        slots: vec![slot],
        starts: vec![start],
        lens: vec![len],
        chosen: positions.iter().map(|at| value(*at)).collect(),
        top_lens: vec![1; positions.len()],
        top_tokens: positions.clone(),
        top_logprobs: positions.iter().map(|at| value(*at) / 2.0).collect(),
    }
}

fn value(position: u32) -> f32 {
    -f32::from(u16::try_from(position).unwrap())
}

/// What a sink hears of them.
fn heard(start: u32, len: u32) -> Told {
    let one = |at| TokenLogprobs {
        chosen: value(at),
        top: vec![(at, value(at) / 2.0)],
    };
    Told::Prompt(start, (start..start + len).map(one).collect())
}

fn say(mut say: Say, logprobs: PromptLogprobs) -> Say {
    say.0.prompt_logprobs = Some(logprobs);
    say
}

#[tokio::test]
async fn they_come_chunk_by_chunk_before_the_tokens_of_their_report() {
    let router = Router::start(Options {
        threads: 2,
        ..Options::default()
    });
    // Once on the thread of the stream, once from the other.
    for (thread, name) in [(0, "near"), (1, "far")] {
        let mut worker = Worker::join(router.addresses[thread], name, Role::Mixed).await;
        let request = Request {
            choices: 2,
            ..asking()
        };
        let (ticket, mut answers) = router.submit_on(0, request).await.unwrap();
        let (a, b) = (worker.open().await, worker.open().await);
        assert_eq!(
            (a.prompt_logprobs, b.prompt_logprobs),
            (Some(1), None),
            "the choices share the prompt: one of them tells"
        );
        worker.say(say(Say::nothing(), told(a.slot, 1, 12))).await;
        let last = Say::nothing().token(a.slot, 40);
        worker.say(say(last, told(a.slot, 13, 7))).await;
        let answer = &mut answers[0];
        assert_eq!(answer.next().await, Some(heard(1, 12)));
        assert_eq!(answer.next().await, Some(heard(13, 7)));
        assert_eq!(answer.next().await, Some(Told::Tokens(vec![40], vec![])));
        router.cancel_on(0, ticket).await;
        let (one, two) = (worker.next().await, worker.next().await);
        assert_ne!(one, two, "both seats are closed");
        drop(worker);
        router.idle().await;
    }
    router.end();
}

#[tokio::test]
async fn a_replay_tells_again_from_the_start() {
    let router = Router::start(Options::default());
    let mut first = Worker::join(router.addresses[0], "first", Role::Mixed).await;
    let (_ticket, mut answer) = router.submit(asking()).await;
    let slot = first.open().await.slot;
    first.say(say(Say::nothing(), told(slot, 1, 5))).await;
    assert_eq!(answer.next().await, Some(heard(1, 5)));
    drop(first);
    let mut second = Worker::join(router.addresses[0], "second", Role::Mixed).await;
    let open = second.open().await;
    assert_eq!(open.prompt_logprobs, Some(1));
    second
        .say(say(Say::nothing(), told(open.slot, 1, 19)))
        .await;
    assert_eq!(answer.next().await, Some(heard(1, 19)));
    router.end();
}

#[tokio::test]
async fn a_destination_that_is_faster_waits_for_those_of_the_source() {
    let Pair {
        router,
        mut p,
        mut d,
        ticket: _ticket,
        mut answer,
        cur,
        nxt,
    } = shipping(asking()).await;
    d.say(Say::nothing().arrived(nxt, 1, &[100])).await;
    p.close_of(cur).await;
    d.say(Say::nothing().token(nxt, 101)).await;
    p.say(say(Say::nothing().token(cur, 100), told(cur, 1, 19)))
        .await;
    p.say(Say::nothing().closed(cur, CloseReason::Asked)).await;
    assert_eq!(answer.next().await, Some(heard(1, 19)));
    assert_eq!(answer.until(2).await, [100, 101]);
    router.end();
}

#[tokio::test]
async fn what_was_not_asked_for_ends_the_session() {
    type Change = fn(&mut PromptLogprobs);
    let cases: [(&str, Change); 3] = [
        ("another slot", |p| p.slots[0] += 1),
        ("columns of two lengths", |p| p.chosen.truncate(2)),
        ("a run too few", |p| p.lens.clear()),
    ];
    let router = Router::start(Options::default());
    for (name, change) in cases {
        let mut worker = Worker::join(router.addresses[0], "m", Role::Mixed).await;
        let (ticket, _answer) = router.submit(asking()).await;
        let mut logprobs = told(worker.open().await.slot, 1, 3);
        change(&mut logprobs);
        worker.say(say(Say::nothing(), logprobs)).await;
        tokio::time::timeout(PATIENCE, worker.ended())
            .await
            .expect(name);
        router.cancel_on(0, ticket).await;
    }
    router.end();
}
