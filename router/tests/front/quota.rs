//! What a request costs its caller's quota of tokens, by how it ends.

use std::{cell::Cell, time::Instant};

use dopd_router::{
    auth::{Caller, Door, Gate},
    config::{KeyConfig, KeyDigest, records::LimitsConfig},
    error::{Error, Reason},
    metrics::Format,
    service::{Head, Wake, Wanted},
    streams::sink::FinishReason,
    validate::{Params, check},
};
use hyper::{HeaderMap, header::AUTHORIZATION};

use crate::{
    fake::{Fake, Step},
    service::{run, text},
};

/// So few that a second passes before one comes back.
const LIMIT: u64 = 60;

/// A caller with a quota of tokens.
fn caller() -> Caller {
    let key = KeyConfig {
        tokens_per_minute: Some(LIMIT),
        ..KeyConfig::unlimited("team", KeyDigest::of(b"k"))
    };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, "Bearer k".parse().unwrap())]);
    let admitted = Gate::new(&[key]).admit(Door::Http, "/v1/completions", &headers);
    admitted.unwrap()
}

/// What `params` costs if a worker does `script`, and how many tokens of prompts metrics have seen.
/// The client leaves where the script waits.
fn cost(script: Vec<Step>, params: Params) -> (u64, u64) {
    let script_len = script.len();
    let (fake, caller) = (Fake::new(script), caller());
    let buyer = caller.clone();
    let seen = Cell::new(0);
    let told = &seen;
    run(&fake, LimitsConfig::default(), |service| async move {
        let spec = check(params, service.limits(), service.model()).unwrap();
        let wanted = Wanted {
            wake: Wake::Each,
            token_ids: false,
        };
        let head = Head {
            caller: buyer,
            ..Head::default()
        };
        let arrival = service.arrive(head).unwrap();
        let steps = 2 * (1 + script_len);
        let answer = service.submit(arrival, spec, wanted).await.unwrap();
        // The script is a task of this thread: each time it gets on by a step at least.
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        drop(answer);
        let page = service.metrics().render(Format::Text);
        let mut lines = page.lines();
        let count = lines.find_map(|line| line.strip_prefix(COUNTER));
        told.set(count.unwrap().parse().unwrap());
    });
    let [_, tokens] = caller.standing(Instant::now());
    (LIMIT - tokens.unwrap().remaining, seen.get())
}

fn answer_of(max_tokens: i64) -> Params {
    Params {
        max_tokens: Some(max_tokens),
        ..text("a prompt of thirty tokens or so")
    }
}

const PROMPT: u64 = 31;
/// Of the metrics page.
const COUNTER: &str = "dopd_prompt_tokens_total{model=\"mock\"} ";

#[test]
fn what_a_worker_did_for_its_client_is_paid() {
    let end = Step::Finish(FinishReason::Stop);
    let whole = cost(vec![Step::Text("ab"), end.clone()], answer_of(10));
    assert_eq!(whole, (PROMPT + 2, PROMPT));
    let left = cost(vec![Step::Text("ab"), Step::Gate], answer_of(10));
    assert_eq!(left, (PROMPT + 2, PROMPT));
    let scored = Params {
        echo: true,
        ..answer_of(0)
    };
    assert_eq!(cost(vec![Step::Text("a"), end], scored), (PROMPT, PROMPT));
    let left_early = cost(vec![Step::Placed, Step::Gate], answer_of(10));
    assert_eq!(left_early, (PROMPT, 0));
}

#[test]
fn what_nobody_did_is_free() {
    let failed = Step::Fail(Error::new(Reason::WorkerFailed, "gone"));
    assert_eq!(cost(vec![Step::Placed, failed], answer_of(10)), (0, 0));
    assert_eq!(cost(vec![Step::Gate], answer_of(10)), (0, 0));
}
