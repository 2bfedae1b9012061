//! Prefill to decode: grants relayed, one seat current at a time, every token once.

use dopd_router::{
    streams::{
        deliver::LOGPROB_UNKNOWN,
        sink::{FinishReason, TokenLogprobs},
    },
    wire::worker::{CloseReason, Logprobs, Role},
};

use crate::support::{
    eventually,
    router::{Options, Request, Router},
    sink::Answer,
    worker::{Say, Worker, grant},
};

/// A prefill and a decode worker, and a request whose hand-off is under way.
pub(crate) struct Pair {
    pub(crate) router: Router,
    pub(crate) p: Worker,
    pub(crate) d: Worker,
    pub(crate) ticket: dopd_router::dispatch::Ticket,
    pub(crate) answer: Answer,
    /// Slots at `p` and `d`.
    pub(crate) cur: u32,
    pub(crate) nxt: u32,
}

/// Brings a request to SHIPPING: both seats open, Send given.
pub(crate) async fn shipping(request: Request) -> Pair {
    let router = Router::start(Options::default());
    let mut p = Worker::join(router.addresses[0], "p", Role::Prefill).await;
    let mut d = Worker::join(router.addresses[0], "d", Role::Decode).await;
    let (ticket, answer) = router.submit(request).await;
    let (nxt, have) = d.import().await;
    assert_eq!(have, 0);
    d.say(Say::nothing().opened(nxt)).await;
    let (cur, prompt, so_far) = p.compute().await;
    assert_eq!((prompt.len(), so_far.len()), (20, 0));
    assert_eq!(
        p.send_of(cur).await,
        Some(grant(nxt)),
        "the grant of the import seat"
    );
    Pair {
        router,
        p,
        d,
        ticket,
        answer,
        cur,
        nxt,
    }
}

#[tokio::test]
async fn the_answer_goes_on_at_the_decode_worker() {
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
    assert_eq!(answer.until(1).await, [100]);
    // The tail holds a token that the stream has; the next token comes in the same report.
    d.say(Say::nothing().arrived(nxt, 1, &[100]).token(nxt, 101))
        .await;
    p.close_of(cur).await;
    assert_eq!(answer.until(2).await, [100, 101]);
    // A late token of the old seat does not count.
    p.say(
        Say::nothing()
            .token(cur, 999)
            .closed(cur, CloseReason::Asked),
    )
    .await;
    d.say(Say::nothing().token(nxt, 102)).await;
    d.say(
        Say::nothing()
            .token(nxt, 103)
            .closed(nxt, CloseReason::Stop),
    )
    .await;
    assert_eq!(answer.finish().await, FinishReason::Stop);
    assert_eq!(answer.tokens, [100, 101, 102, 103]);
    let status = router.dispatch.status().await;
    assert_eq!((status.handoffs_total, status.replays_total), (1, 0));
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn a_tail_brings_what_the_stream_lacks() {
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
    // The source made 101 and 102, but its reports are still on the way.
    d.say(Say::nothing().arrived(nxt, 3, &[100, 101, 102]))
        .await;
    assert_eq!(answer.until(3).await, [100, 101, 102]);
    p.close_of(cur).await;
    p.say(Say::nothing().token(cur, 101)).await;
    p.say(
        Say::nothing()
            .token(cur, 102)
            .closed(cur, CloseReason::Asked),
    )
    .await;
    d.say(Say::nothing().token(nxt, 103)).await;
    assert_eq!(answer.until(4).await, [100, 101, 102, 103]);
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn an_answer_may_end_before_the_switch() {
    let Pair {
        router,
        p,
        mut d,
        ticket,
        mut answer,
        nxt,
        ..
    } = shipping(Request::default()).await;
    // Arrival, tokens and the end in one report: the brain's Switch finds the slot closed.
    let say = Say::nothing().arrived(nxt, 1, &[100]).token(nxt, 101);
    d.say(say.closed(nxt, CloseReason::Length)).await;
    assert_eq!(answer.finish().await, FinishReason::Length);
    assert_eq!(answer.tokens, [100, 101]);
    eventually("ended", || router.dispatch.active() == 0).await;
    drop((p, ticket));
    router.end();
}

#[tokio::test]
async fn the_source_may_finish_first() {
    let Pair {
        router,
        mut p,
        mut d,
        ticket,
        mut answer,
        cur,
        nxt,
    } = shipping(Request::default()).await;
    p.say(
        Say::nothing()
            .token(cur, 100)
            .closed(cur, CloseReason::Stop),
    )
    .await;
    assert_eq!(answer.finish().await, FinishReason::Stop);
    d.close_of(nxt).await;
    // Crossing the Close: what it has is of an ended request.
    d.say(Say::nothing().arrived(nxt, 1, &[100]).token(nxt, 101))
        .await;
    d.say(Say::nothing().closed(nxt, CloseReason::Asked)).await;
    // Both slots serve again.
    let (_ticket, mut answer) = router
        .submit(Request {
            id: "r2",
            ..Request::default()
        })
        .await;
    let (again, _) = d.import().await;
    d.say(Say::nothing().opened(again)).await;
    let (cur, ..) = p.compute().await;
    p.say(Say::nothing().token(cur, 7)).await;
    assert_eq!(answer.until(1).await, [7]);
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn a_failed_hand_off_leaves_the_answer_where_it_is() {
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
    d.say(Say::nothing().closed(nxt, CloseReason::Lost)).await;
    assert_eq!(p.send_of(cur).await, None, "stay");
    p.say(Say::nothing().token(cur, 101)).await;
    assert_eq!(answer.until(2).await, [100, 101]);
    assert_eq!(router.dispatch.status().await.replays_total, 0);
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn cancel_while_placing_closes_the_import_seat() {
    let router = Router::start(Options::default());
    let mut p = Worker::join(router.addresses[0], "p", Role::Prefill).await;
    let mut d = Worker::join(router.addresses[0], "d", Role::Decode).await;
    let (ticket, mut answer) = router.submit(Request::default()).await;
    let (nxt, _) = d.import().await;
    router.cancel_on(0, ticket).await;
    d.close_of(nxt).await;
    d.say(Say::nothing().opened(nxt).closed(nxt, CloseReason::Asked))
        .await;
    answer.gone().await;
    // The prefill worker never heard of it: its next command is of the next request.
    let (_ticket, mut answer) = router
        .submit(Request {
            id: "r2",
            ..Request::default()
        })
        .await;
    let (nxt, _) = d.import().await;
    d.say(Say::nothing().opened(nxt)).await;
    let open = p.open().await;
    assert_eq!(open.request_id, "r2");
    p.say(Say::nothing().token(open.slot, 1)).await;
    answer.until(1).await;
    router.end();
}

#[tokio::test]
async fn cancel_while_shipping_closes_both_seats() {
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
    router.cancel_on(0, ticket).await;
    p.close_of(cur).await;
    d.close_of(nxt).await;
    p.say(
        Say::nothing()
            .token(cur, 101)
            .closed(cur, CloseReason::Asked),
    )
    .await;
    d.say(Say::nothing().closed(nxt, CloseReason::Asked)).await;
    answer.gone().await;
    assert_eq!(router.dispatch.active(), 0);
    router.idle().await;
    let (_ticket, _answer) = router.submit(Request::default()).await;
    assert_eq!(d.import().await.0, nxt, "the slot is free again");
    router.end();
}

#[tokio::test]
async fn cancel_after_the_switch_closes_the_seat() {
    let Pair {
        router,
        mut p,
        mut d,
        ticket,
        mut answer,
        cur,
        nxt,
    } = shipping(Request::default()).await;
    d.say(Say::nothing().arrived(nxt, 1, &[100])).await;
    p.close_of(cur).await;
    answer.until(1).await;
    router.cancel_on(0, ticket).await;
    d.close_of(nxt).await;
    answer.gone().await;
    router.end();
}

/// A report with `tokens` of `slot`, each with its own log probability.
fn with_logprobs(slot: u32, tokens: &[u32]) -> Say {
    let mut say = Say::nothing();
    let mut columns = Logprobs::default();
    for (index, token) in (0..).zip(tokens) {
        say = say.token(slot, *token);
        columns.token_index.push(index);
        columns.chosen.push(logprob(*token));
        columns.top_lens.push(1);
        columns.top_tokens.push(*token);
        columns.top_logprobs.push(logprob(*token));
    }
    say.0.logprobs = Some(columns);
    say
}

fn logprob(token: u32) -> f32 {
    -f32::from(u16::try_from(token).unwrap())
}

fn expected(tokens: &[u32]) -> Vec<TokenLogprobs> {
    (tokens.iter())
        .map(|token| TokenLogprobs {
            chosen: logprob(*token),
            top: vec![(*token, logprob(*token))],
        })
        .collect()
}

#[tokio::test]
async fn log_probabilities_survive_a_tail() {
    let request = Request {
        top_logprobs: Some(1),
        ..Request::default()
    };
    let Pair {
        router,
        mut p,
        mut d,
        ticket,
        mut answer,
        cur,
        nxt,
    } = shipping(request).await;
    p.say(with_logprobs(cur, &[100])).await;
    answer.until(1).await;
    // The tail has 101 without its log probability: the source's own report brings both, later.
    d.say(Say::nothing().arrived(nxt, 2, &[100, 101])).await;
    p.close_of(cur).await;
    d.say(with_logprobs(nxt, &[102])).await;
    p.say(with_logprobs(cur, &[101])).await;
    p.say(Say::nothing().closed(cur, CloseReason::Asked)).await;
    assert_eq!(answer.until(3).await, [100, 101, 102]);
    assert_eq!(answer.logprobs, expected(&[100, 101, 102]));
    drop(ticket);
    router.end();
}

#[tokio::test]
async fn a_source_that_dies_owes_only_log_probabilities() {
    let request = Request {
        top_logprobs: Some(1),
        ..Request::default()
    };
    let Pair {
        router,
        mut p,
        mut d,
        ticket,
        mut answer,
        cur,
        nxt,
    } = shipping(request).await;
    p.say(with_logprobs(cur, &[100])).await;
    answer.until(1).await;
    d.say(Say::nothing().arrived(nxt, 2, &[100, 101])).await;
    p.close_of(cur).await;
    drop(p);
    assert_eq!(answer.until(2).await, [100, 101]);
    d.say(with_logprobs(nxt, &[102])).await;
    assert_eq!(answer.until(3).await, [100, 101, 102]);
    let unknown = TokenLogprobs {
        chosen: LOGPROB_UNKNOWN,
        top: Vec::new(),
    };
    assert_eq!(answer.logprobs[1], unknown);
    assert_eq!(answer.logprobs[2..], expected(&[102]));
    drop(ticket);
    router.end();
}
