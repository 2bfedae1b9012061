//! Real workers over real sockets, with a scripted router: hand-offs give the tokens that one
//! worker gives, and every fault leaves every page free.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests stop the test"
)]

mod router;

use std::time::Duration;

use dopd_mock::{
    step::Pace,
    worker::{self, Wish, WorkerConfig, WorkerError},
};
use dopd_router::wire::worker::{CloseReason, Role};
use router::{Ask, Attached, PATIENCE, Router, close, send};
use tokio::{sync::watch, task::JoinSet, time::timeout};

const TOKEN: &str = "secret";
/// The scripted router sends no heartbeats; tests on a loaded machine take longer than 3 s.
const LEASE_MS: u32 = 60_000;

struct Fleet {
    router: Router,
    workers: JoinSet<Result<(), WorkerError>>,
    wish: watch::Sender<Wish>,
}

impl Fleet {
    async fn start() -> Self {
        Self {
            router: Router::start(TOKEN, LEASE_MS).await,
            workers: JoinSet::new(),
            wish: watch::channel(Wish::Run).0,
        }
    }

    fn config(&self, name: &str, pace: Pace) -> WorkerConfig {
        WorkerConfig {
            name: name.to_owned(),
            role: Role::Mixed,
            join: self.router.address.clone(),
            join_token: TOKEN.to_owned(),
            data_host: "127.0.0.1".to_owned(),
            model: "mock".to_owned(),
            pages: 4_096,
            num_seqs_max: 64,
            batch_tokens_max: 512,
            model_len_max: 65_536,
            pace,
            faults: Vec::new(),
        }
    }

    async fn attach(&mut self, name: &str, pace: Pace) -> Attached {
        let config = self.config(name, pace);
        self.workers
            .spawn(worker::run(config, self.wish.subscribe()));
        self.router.next().await
    }
}

fn paced() -> Pace {
    Pace::fixed(Duration::from_millis(3))
}

#[tokio::test]
async fn one_worker_answers_in_order_and_closes_once() {
    let mut fleet = Fleet::start().await;
    let mut mixed = fleet.attach("mixed", Pace::instant()).await;
    let ask = Ask::new(1_000, 50);
    mixed.say(vec![ask.compute(3, &[])]).await;
    let heard = mixed
        .until(3, "closed", |heard| !heard.closed.is_empty())
        .await;
    assert_eq!(heard.tokens, ask.answer());
    assert_eq!(heard.closed, [CloseReason::Length]);
    mixed.until_clean().await;
}

#[tokio::test]
async fn replay_with_answer_tokens_goes_on_where_it_stopped() {
    let mut fleet = Fleet::start().await;
    let mut mixed = fleet.attach("mixed", Pace::instant()).await;
    let ask = Ask::new(33, 40);
    let answer = ask.answer();
    mixed.say(vec![ask.compute(0, &answer[..17])]).await;
    let heard = mixed
        .until(0, "closed", |heard| !heard.closed.is_empty())
        .await;
    assert_eq!(heard.tokens, answer[17..]);
}

/// Prefill at P, decode at D, pages over the data link: token for token what one worker makes.
async fn hand_off(pace: Pace, prompt: u32, max_tokens: u32) {
    let mut fleet = Fleet::start().await;
    let mut p = fleet.attach("p", pace.clone()).await;
    let mut d = fleet.attach("d", pace).await;
    let ask = Ask::new(prompt, max_tokens);
    d.say(vec![ask.import(4, 0)]).await;
    let grant = d
        .until(4, "opened", |heard| heard.grant.is_some())
        .await
        .grant;
    p.say(vec![ask.compute(7, &[]), send(7, grant)]).await;
    let (pos, tail) = d
        .until(4, "arrived", |heard| heard.arrived.is_some())
        .await
        .arrived
        .expect("waited for");
    p.say(vec![close(7)]).await;
    let source = p.until(7, "closed", |heard| !heard.closed.is_empty()).await;
    let rest = d.until(4, "closed", |heard| !heard.closed.is_empty()).await;
    assert_eq!(source.closed, [CloseReason::Asked]);
    assert_eq!(rest.closed, [CloseReason::Length]);
    assert_eq!(tail.len(), pos as usize);
    assert!(source.tokens.len() <= tail.len() && tail.starts_with(&source.tokens));
    let all: Vec<u32> = tail.into_iter().chain(rest.tokens).collect();
    assert_eq!(all, ask.answer());
    p.until_clean().await;
    d.until_clean().await;
}

#[tokio::test]
async fn hand_off_gives_the_same_tokens_paced() {
    hand_off(paced(), 3_000, 20).await;
}

#[tokio::test]
async fn hand_off_gives_the_same_tokens_instant() {
    hand_off(Pace::instant(), 40_000, 5_000).await;
}

#[tokio::test]
async fn cancel_in_mid_transfer_frees_both_sides() {
    let mut fleet = Fleet::start().await;
    let mut p = fleet.attach("p", paced()).await;
    let mut d = fleet.attach("d", paced()).await;
    let ask = Ask::new(8_000, 100);
    d.say(vec![ask.import(1, 0)]).await;
    let grant = d
        .until(1, "opened", |heard| heard.grant.is_some())
        .await
        .grant;
    p.say(vec![ask.compute(1, &[]), send(1, grant)]).await;
    // The prompt takes 16 steps: after a few reports pages are under way.
    while p.last.step < 4 {
        p.read("report").await;
    }
    d.say(vec![close(1)]).await;
    p.say(vec![close(1)]).await;
    let reasons = [
        p.until(1, "closed", |heard| !heard.closed.is_empty())
            .await
            .closed,
        d.until(1, "closed", |heard| !heard.closed.is_empty())
            .await
            .closed,
    ];
    assert_eq!(reasons, [[CloseReason::Asked], [CloseReason::Asked]]);
    p.until_clean().await;
    d.until_clean().await;
}

#[tokio::test]
async fn destination_dies_in_mid_transfer_and_the_source_decodes_on() {
    let mut fleet = Fleet::start().await;
    let mut p = fleet.attach("p", paced()).await;
    let config = fleet.config("d", paced());
    let (stop, stopped) = watch::channel(Wish::Run);
    fleet.workers.spawn(worker::run(config, stopped));
    let mut d = fleet.router.next().await;
    let ask = Ask::new(8_000, 30);
    d.say(vec![ask.import(1, 0)]).await;
    let grant = d
        .until(1, "opened", |heard| heard.grant.is_some())
        .await
        .grant;
    p.say(vec![ask.compute(1, &[]), send(1, grant)]).await;
    while p.last.step < 4 {
        p.read("report").await;
    }
    stop.send_replace(Wish::Stop);
    p.say(vec![send(1, None)]).await;
    let heard = p.until(1, "closed", |heard| !heard.closed.is_empty()).await;
    assert_eq!(heard.closed, [CloseReason::Length]);
    assert_eq!(heard.tokens, ask.answer());
    p.until_clean().await;
}

#[tokio::test]
async fn source_dies_in_mid_transfer_and_the_import_is_lost() {
    let mut fleet = Fleet::start().await;
    let mut d = fleet.attach("d", paced()).await;
    let config = fleet.config("p", paced());
    let (stop, stopped) = watch::channel(Wish::Run);
    fleet.workers.spawn(worker::run(config, stopped));
    let mut p = fleet.router.next().await;
    let ask = Ask::new(8_000, 30);
    d.say(vec![ask.import(1, 0)]).await;
    let grant = d
        .until(1, "opened", |heard| heard.grant.is_some())
        .await
        .grant;
    p.say(vec![ask.compute(1, &[]), send(1, grant)]).await;
    while p.last.step < 4 {
        p.read("report").await;
    }
    stop.send_replace(Wish::Stop);
    let heard = d.until(1, "closed", |heard| !heard.closed.is_empty()).await;
    assert_eq!(heard.closed, [CloseReason::Lost]);
    d.until_clean().await;
}

#[tokio::test]
async fn session_loss_closes_every_seat_and_the_worker_comes_back() {
    let mut fleet = Fleet::start().await;
    let mut first = fleet.attach("mixed", paced()).await;
    let ask = Ask::new(100, 10_000);
    first.say(vec![ask.compute(0, &[]), ask.import(1, 0)]).await;
    first
        .until(0, "tokens", |heard| heard.tokens.len() > 2)
        .await;
    let (session, incarnation) = (first.session, first.hello.incarnation);
    drop(first);
    let mut second = fleet.router.next().await;
    assert_ne!(second.session, session);
    assert_eq!(second.hello.incarnation, incarnation);
    second.read("first report").await;
    assert_eq!(second.last.pages_free, second.hello.pages_total);
    assert_eq!(second.last.running, 0);
    let short = Ask::new(20, 5);
    second.say(vec![short.compute(0, &[])]).await;
    let heard = second
        .until(0, "closed", |heard| !heard.closed.is_empty())
        .await;
    assert_eq!(heard.tokens, short.answer());
}

#[tokio::test]
async fn silence_of_the_router_ends_the_session() {
    let mut fleet = Fleet::start().await;
    fleet.router = Router::start(TOKEN, 100).await;
    let silent = fleet.attach("mixed", Pace::instant()).await;
    // Not one Cmd: the lease of 100 ms ends, and the worker dials again.
    let again = fleet.router.next().await;
    assert_ne!(silent.session, again.session);
}

#[tokio::test]
async fn wrong_join_token_is_refused_for_good() {
    let mut fleet = Fleet::start().await;
    let mut config = fleet.config("mixed", Pace::instant());
    config.join_token = "wrong".to_owned();
    fleet
        .workers
        .spawn(worker::run(config, fleet.wish.subscribe()));
    let ended = timeout(PATIENCE, fleet.workers.join_next())
        .await
        .expect("ends");
    let error = ended
        .expect("one worker")
        .expect("no panic")
        .expect_err("refused");
    assert!(matches!(error, WorkerError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn drain_without_a_router_ends_at_once() {
    let mut fleet = Fleet::start().await;
    let mut config = fleet.config("alone", Pace::instant());
    // A port on which nobody listens: bound, and given back at once.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    config.join = free.local_addr().expect("address").to_string();
    drop(free);
    fleet
        .workers
        .spawn(worker::run(config, fleet.wish.subscribe()));
    fleet.wish.send_replace(Wish::Drain);
    let ended = timeout(PATIENCE, fleet.workers.join_next())
        .await
        .expect("ends");
    ended
        .expect("one worker")
        .expect("no panic")
        .expect("drained");
}

#[tokio::test]
async fn drain_refuses_new_work_and_ends_when_empty() {
    let mut fleet = Fleet::start().await;
    let mut mixed = fleet.attach("mixed", paced()).await;
    let ask = Ask::new(50, 40);
    mixed.say(vec![ask.compute(0, &[])]).await;
    mixed
        .until(0, "tokens", |heard| !heard.tokens.is_empty())
        .await;
    fleet.wish.send_replace(Wish::Drain);
    while !mixed.last.draining {
        mixed.read("draining").await;
    }
    mixed.say(vec![ask.compute(1, &[])]).await;
    let heard = mixed
        .until(1, "closed", |heard| !heard.closed.is_empty())
        .await;
    assert_eq!(heard.closed, [CloseReason::Refused]);
    let heard = mixed
        .until(0, "closed", |heard| !heard.closed.is_empty())
        .await;
    assert_eq!(heard.tokens, ask.answer());
    drop(mixed);
    let ended = timeout(PATIENCE, fleet.workers.join_next())
        .await
        .expect("ends");
    ended
        .expect("one worker")
        .expect("no panic")
        .expect("drained");
}
