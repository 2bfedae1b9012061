//! Many requests, several threads, real mock workers, and everything that can go wrong at once.
//!
//! The mock's tokens depend on the KV that a hand-off moved, so an answer that equals the reference
//! proves hand-offs, replays and the order of tokens together.

use std::{net::SocketAddr, time::Duration};

use dopd_mock::{
    model,
    step::Pace,
    worker::{self, Wish, WorkerConfig, WorkerError},
};
use dopd_router::{
    dispatch::Ticket,
    error::Reason,
    streams::sink::FinishReason,
    wire::worker::{Role, Sampling},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::support::{
    PATIENCE,
    router::{Options, Request, Router, SEED, TOKEN},
    sink::{Answer, Told},
};

/// A mock worker that can be killed.
pub(crate) struct Mock {
    name: String,
    role: Role,
    router: SocketAddr,
    task: JoinHandle<Result<(), WorkerError>>,
    _wish: watch::Sender<Wish>,
}

impl Mock {
    pub(crate) fn start(name: &str, role: Role, router: SocketAddr) -> Self {
        let config = WorkerConfig {
            name: name.to_owned(),
            role,
            join: router.to_string(),
            join_token: TOKEN.to_owned(),
            data_host: "127.0.0.1".to_owned(),
            model: "mock".to_owned(),
            pages: 256,
            num_seqs_max: 32,
            batch_tokens_max: 128,
            model_len_max: 4_096,
            pace: Pace::fixed(Duration::from_micros(200)),
            faults: Vec::new(),
        };
        let (wish, wished) = watch::channel(Wish::Run);
        Self {
            name: name.to_owned(),
            role,
            router,
            task: tokio::spawn(worker::run(config, wished)),
            _wish: wish,
        }
    }

    /// Dies without a word, and is started again.
    async fn restart(&mut self) {
        self.task.abort();
        drop((&mut self.task).await);
        *self = Self::start(&self.name, self.role, self.router);
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: u64) -> usize {
        self.0 = model::next_entry(self.0, 1);
        usize::try_from((self.0 >> 16) % limit).unwrap()
    }
}

/// What the mock model answers.
fn reference(prompt: &[u32], max_tokens: u32) -> (Vec<u32>, FinishReason) {
    let sampling = Sampling {
        seed: SEED,
        ..Sampling::default()
    };
    let mut last = (prompt.iter()).fold(model::CHAIN_START, |entry, token| {
        model::next_entry(entry, *token)
    });
    let mut answer = Vec::new();
    for pos in 0..max_tokens {
        let token = model::draw(last, &sampling, pos).token;
        answer.push(token);
        if token == model::EOS {
            return (answer, FinishReason::Stop);
        }
        last = model::next_entry(last, token);
    }
    (answer, FinishReason::Length)
}

/// How a request is treated by its client.
enum Client {
    Patient,
    CancelsAfter(usize),
    StopsAfter(usize),
}

pub(crate) struct Running {
    client: Client,
    prompt: Vec<u32>,
    max_tokens: u32,
    thread: usize,
    ticket: Ticket,
    answer: Answer,
}

/// What became of a request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) finished: usize,
    pub(crate) given_up: usize,
    broken_off: usize,
}

pub(crate) async fn submit(router: &Router, numbers: &mut Numbers) -> Running {
    let prompt: Vec<u32> = (0..=numbers.below(200))
        .map(|_| u32::try_from(numbers.below(256)).unwrap())
        .collect();
    let max_tokens = u32::try_from(1 + numbers.below(80)).unwrap();
    let client = match numbers.below(8) {
        0 => Client::CancelsAfter(numbers.below(30)),
        1 => Client::StopsAfter(1 + numbers.below(30)),
        _ => Client::Patient,
    };
    let request = Request {
        prompt: prompt.clone(),
        max_tokens,
        stop_after: match client {
            Client::StopsAfter(count) => count,
            _ => usize::MAX,
        },
        top_logprobs: (numbers.below(3) == 0).then_some(2),
        ..Request::default()
    };
    let thread = numbers.below(2);
    let (ticket, mut answers) = router.submit_on(thread, request).await.unwrap();
    let answer = answers.remove(0);
    Running {
        client,
        prompt,
        max_tokens,
        thread,
        ticket,
        answer,
    }
}

/// Reads an answer to its end and compares it.
pub(crate) async fn check(router: &Router, running: Running, tally: &mut Tally) {
    let Running {
        client,
        prompt,
        max_tokens,
        thread,
        ticket,
        mut answer,
    } = running;
    let (expected, how) = reference(&prompt, max_tokens);
    let mut ticket = Some(ticket);
    let end = loop {
        if matches!(client, Client::CancelsAfter(count) if answer.tokens.len() >= count)
            && let Some(ticket) = ticket.take()
        {
            router.cancel_on(thread, ticket).await;
        }
        let Ok(told) = tokio::time::timeout(PATIENCE / 2, answer.next()).await else {
            let (status, got) = (router.dispatch.status().await, answer.tokens.len());
            panic!(
                "stuck after {got} of {} tokens: {status:#?}",
                expected.len()
            );
        };
        match told {
            Some(Told::Tokens(..)) => {}
            end => break end,
        }
    };
    let got = answer.tokens.as_slice();
    assert!(
        expected.starts_with(got),
        "{got:?} is no start of {expected:?}"
    );
    if !answer.logprobs.is_empty() {
        assert_eq!(answer.logprobs.len(), got.len());
    }
    match end {
        Some(Told::Finish(reason)) => {
            assert_eq!((got, reason), (expected.as_slice(), how));
            tally.finished += 1;
        }
        Some(Told::Fail(error)) => {
            let given_up = [Reason::PoisonSuspect, Reason::WorkerFailed];
            assert!(given_up.contains(&error.reason), "{error:?}");
            tally.given_up += 1;
        }
        None => {
            assert!(!matches!(client, Client::Patient), "an answer broke off");
            tally.broken_off += 1;
        }
        Some(told @ (Told::Tokens(..) | Told::Prompt(..))) => {
            unreachable!("{told:?}: the loop reads tokens, nobody asked for the prompt")
        }
    }
}

/// Runs `requests`, 40 at a time; after every `kill_every`-th a worker dies.
async fn storm(seed: u64, requests: usize, kill_every: usize) -> (Router, Vec<Mock>, Tally) {
    let router = Router::start(Options {
        threads: 2,
        ..Options::default()
    });
    let at = |thread: usize| router.addresses[thread];
    let mut mocks = vec![
        Mock::start("p0", Role::Prefill, at(0)),
        Mock::start("p1", Role::Prefill, at(1)),
        Mock::start("d0", Role::Decode, at(0)),
        Mock::start("d1", Role::Decode, at(1)),
    ];
    let mut numbers = Numbers(seed);
    let mut tally = Tally::default();
    let mut running = std::collections::VecDeque::new();
    for count in 1..=requests {
        running.push_back(submit(&router, &mut numbers).await);
        if count % kill_every == 0 {
            let victim = numbers.below(mocks.len() as u64);
            mocks[victim].restart().await;
        }
        if running.len() >= 40
            && let Some(first) = running.pop_front()
        {
            check(&router, first, &mut tally).await;
        }
    }
    for rest in running {
        check(&router, rest, &mut tally).await;
    }
    (router, mocks, tally)
}

/// Every page is free again at every worker.
pub(crate) async fn clean(router: &Router, workers: usize) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let status = router.dispatch.status().await;
        let is_clean = (status.workers.iter())
            .all(|worker| worker.seats == 0 && worker.pages.free == worker.pages.total);
        if is_clean && status.workers.len() == workers && status.sequences_running == 0 {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "never clean: {status:#?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn answers_are_the_models_whatever_the_clients_do() {
    let (router, mocks, tally) = storm(1, 300, usize::MAX).await;
    assert_eq!(tally.given_up, 0, "{tally:?}");
    assert!(tally.finished >= 200 && tally.broken_off >= 20, "{tally:?}");
    let status = router.dispatch.status().await;
    assert!(status.handoffs_total >= 100, "{status:?}");
    assert_eq!(status.replays_total, 0, "nobody died");
    clean(&router, mocks.len()).await;
    assert_eq!(router.dispatch.active(), 0);
    router.end();
}

#[tokio::test]
async fn answers_are_the_models_whoever_dies() {
    let (router, mocks, tally) = storm(2, 300, 25).await;
    let status = router.dispatch.status().await;
    assert!(status.replays_total > 0, "{status:?}");
    assert!(tally.finished >= 200, "{tally:?}");
    clean(&router, mocks.len()).await;
    assert_eq!(router.dispatch.active(), 0);
    router.end();
}
