//! Both fronts, one table: the same request is the same submission, the same tokens, the same
//! usage; or the same error at the same field.
//!
//! A row is OpenAI's JSON; [`generate`] and [`chat`] say it in gRPC's words. What JSON can say and
//! protobuf cannot (a text for a number) is not here. `max_tokens` always stands: where it is
//! absent, completions stop at OpenAI's 16 tokens, gRPC goes on.

use std::{net::SocketAddr, sync::Arc};

use dopd_router::{
    config::records::{GrpcConfig, HttpConfig, LimitsConfig},
    drain::Stop,
    error::{Error, Reason},
    streams::sink::FinishReason,
    wire::v1::{
        AnswerOptions, ChatMessage, ChatRequest, GenerateRequest, Sampling, TokenIds,
        chat_response, generate_request::Prompt, generate_response::Event,
        inference_service_client::InferenceServiceClient,
    },
};
use serde_json::Value;
use tokio::{net::TcpListener, task::LocalSet};
use tonic::{Status, transport::Channel};

use crate::{
    client::post,
    fake::{Fake, Step, service},
    grpc_methods::reason,
};

/// What a request came to, the same on both fronts.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// What was submitted; text and end of each choice; tokens used.
    Answer(String, Vec<(String, String)>, (u64, u64)),
    /// Code and field.
    Refusal(String, String),
}

fn script() -> Vec<Step> {
    let entry = dopd_router::streams::sink::TokenLogprobs {
        chosen: -0.5,
        top: vec![],
    };
    vec![
        Step::Text("one two "),
        Step::Logprobs(vec![51], vec![entry]),
        Step::Finish(FinishReason::Length),
    ]
}

/// Rows of `/v1/completions` and Generate.
const PROMPTS: &[&str] = &[
    r#"{"prompt":"hi","max_tokens":9}"#,
    r#"{"prompt":"na\u00efve \ud83d\ude00","max_tokens":9,"seed":7}"#,
    r#"{"prompt":[1,2,3],"max_tokens":9,"n":3}"#,
    r#"{"prompt":"hi","max_tokens":9,"temperature":0,"top_p":0.5,"top_k":5,"min_p":0.25}"#,
    r#"{"prompt":"hi","max_tokens":9,"temperature":2,"top_k":4294967295}"#,
    r#"{"prompt":"hi","max_tokens":9,"stop":[" two"]}"#,
    r#"{"prompt":"hi","max_tokens":9,"min_tokens":9,"ignore_eos":true,"stop_token_ids":[5,257]}"#,
    r#"{"prompt":"hi","max_tokens":9,"priority":-100}"#,
    r#"{"prompt":"hi","max_tokens":9,"model":"mock"}"#,
    r#"{"prompt":"hi","max_tokens":9,"model":""}"#,
    r#"{"prompt":"hi","max_tokens":9,"presence_penalty":0,"repetition_penalty":1}"#,
    r#"{"prompt":"hi","max_tokens":9,"presence_penalty":-2,"frequency_penalty":0.5,
        "repetition_penalty":1.25,"logit_bias":{"7":-100,"5":0.5,"9":0}}"#,
    r#"{"prompt":" \n","max_tokens":9}"#,
    r#"{"prompt":"hi","max_tokens":9,"priority":2147483647}"#,
    r#"{"prompt":"hi","max_tokens":9,"presence_penalty":2.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"frequency_penalty":-2.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"repetition_penalty":0}"#,
    r#"{"prompt":"hi","max_tokens":9,"repetition_penalty":2.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"logit_bias":{"258":1}}"#,
    r#"{"prompt":"hi","max_tokens":9,"logit_bias":{"5":100.5}}"#,
    r#"{"max_tokens":9}"#,
    r#"{"prompt":"","max_tokens":9}"#,
    r#"{"prompt":[],"max_tokens":9}"#,
    r#"{"prompt":[1,258],"max_tokens":9}"#,
    r#"{"prompt":"hi","max_tokens":0}"#,
    r#"{"prompt":"hi","max_tokens":1024}"#,
    r#"{"prompt":"hi","max_tokens":4294967295}"#,
    r#"{"prompt":"hi","max_tokens":9,"min_tokens":10}"#,
    r#"{"prompt":"hi","max_tokens":9,"n":0}"#,
    r#"{"prompt":"hi","max_tokens":9,"n":17}"#,
    r#"{"prompt":"hi","max_tokens":9,"temperature":-0.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"temperature":2.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"top_p":0}"#,
    r#"{"prompt":"hi","max_tokens":9,"top_p":1.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"min_p":-0.5}"#,
    r#"{"prompt":"hi","max_tokens":9,"stop":["a",""]}"#,
    r#"{"prompt":"x","max_tokens":9,"stop":["1","2","3","4","5","6","7","8","9","10","11","12",
        "13","14","15","16","17"]}"#,
    r#"{"prompt":"hi","max_tokens":9,"stop_token_ids":[258]}"#,
    r#"{"prompt":"hi","max_tokens":9,"model":"other"}"#,
    r#"{"prompt":"a","max_tokens":9,"slo_ttft_ms":500,"slo_tpot_ms":30}"#,
    r#"{"prompt":"a","max_tokens":9,"slo_ttft_ms":0}"#,
    r#"{"prompt":"a","max_tokens":9,"slo_tpot_ms":86400001}"#,
];

/// Rows of `/v1/chat/completions` and Chat.
const CHATS: &[&str] = &[
    r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":9}"#,
    r#"{"messages":[{"role":"user","content":"hi"}]}"#,
    r#"{"messages":[{"role":"developer","content":"x"},{"role":"assistant","content":""},
        {"role":"user","content":"\u00e9"}],"max_tokens":9,"n":2,"seed":1}"#,
    r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":9,"logprobs":true,
        "top_logprobs":20}"#,
    r#"{"messages":[],"max_tokens":9}"#,
    r#"{"messages":[{"role":"user","content":" "}],"max_tokens":9}"#,
    r#"{"messages":[{"role":"user","content":"a"},{"role":"","content":"b"}],"max_tokens":9}"#,
    r#"{"messages":[{"role":"function","content":"a"}],"max_tokens":9}"#,
    r#"{"messages":[{"role":"tool","content":"a"}],"max_tokens":9}"#,
    r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":1020}"#,
    r#"{"messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":21}"#,
    r#"{"messages":[{"role":"user","content":"hi"}],"model":"other"}"#,
];

/// Rows that are refused with default limits.
const REFUSED: usize = 33;

fn numbers(value: &Value) -> Vec<u32> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |entry: &Value| u32::try_from(entry.as_u64().unwrap()).unwrap();
    list.iter().map(number).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "what protobuf has")]
fn options(row: &Value) -> AnswerOptions {
    let count = |name: &str| row[name].as_u64().map(|n| u32::try_from(n).unwrap());
    let float = |name: &str| row[name].as_f64().map(|n| n as f32);
    let stop = row["stop"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    AnswerOptions {
        max_tokens: count("max_tokens"),
        min_tokens: count("min_tokens"),
        n: count("n"),
        sampling: Some(Sampling {
            temperature: float("temperature"),
            top_p: float("top_p"),
            top_k: count("top_k"),
            seed: row["seed"].as_u64(),
            min_p: float("min_p"),
            presence_penalty: float("presence_penalty"),
            frequency_penalty: float("frequency_penalty"),
            repetition_penalty: float("repetition_penalty"),
            logit_bias: (row["logit_bias"].as_object().into_iter().flatten())
                .map(|(id, bias)| (id.parse().unwrap(), bias.as_f64().unwrap() as f32))
                .collect(),
        }),
        stop: stop
            .iter()
            .map(|s| s.as_str().unwrap().to_owned())
            .collect(),
        stop_token_ids: numbers(&row["stop_token_ids"]),
        ignore_eos: row["ignore_eos"].as_bool().unwrap_or(false),
        top_logprobs: count("top_logprobs"),
        priority: row["priority"].as_i64().map(|n| n as i32),
        slo_ttft_ms: count("slo_ttft_ms"),
        slo_tpot_ms: count("slo_tpot_ms"),
        cache_salt: row["cache_salt"].as_str().unwrap_or_default().to_owned(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn generate(row: &Value) -> GenerateRequest {
    GenerateRequest {
        model: text(&row["model"]),
        prompt: match &row["prompt"] {
            Value::String(text) => Some(Prompt::Text(text.clone())),
            ids @ Value::Array(_) => Some(Prompt::TokenIds(TokenIds { ids: numbers(ids) })),
            _ => None,
        },
        options: Some(options(row)),
    }
}

fn chat(row: &Value) -> ChatRequest {
    let messages = row["messages"].as_array().unwrap().iter();
    ChatRequest {
        model: text(&row["model"]),
        messages: messages
            .map(|message| ChatMessage {
                role: text(&message["role"]),
                content: text(&message["content"]),
            })
            .collect(),
        options: Some(options(row)),
    }
}

/// The last submission, without the seed where it was drawn.
fn submitted(fake: &Fake, row: &Value) -> String {
    let mut seen = fake.seen.lock().pop().unwrap();
    if row["seed"].is_null() {
        seen.seed = 0;
        seen.sampling.seed = 0;
    }
    let wanted = (seen.prompt, seen.choices, seen.sampling, seen.limits);
    let further = (seen.adjustments, seen.priority, seen.tenant);
    format!("{wanted:?} {further:?} {} {}", seen.seed, seen.max_tokens)
}

async fn over_http(address: SocketAddr, fake: &Fake, path: &str, row: &Value) -> Outcome {
    let reply = post(address, path, &row.to_string()).await;
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    if reply.status != 200 {
        let error = &body["error"];
        return Outcome::Refusal(text(&error["code"]), text(&error["param"]));
    }
    let choices = body["choices"].as_array().unwrap().iter();
    let choices = choices.map(|choice| {
        let message = choice["message"]["content"].as_str();
        let content = message.unwrap_or_else(|| choice["text"].as_str().unwrap());
        (content.to_owned(), text(&choice["finish_reason"]))
    });
    let count = |name: &str| body["usage"][name].as_u64().unwrap();
    let usage = (count("prompt_tokens"), count("completion_tokens"));
    Outcome::Answer(submitted(fake, row), choices.collect(), usage)
}

async fn over_grpc(channel: Channel, fake: &Fake, row: &Value) -> Outcome {
    match events(channel, row).await {
        Ok(events) => answer(events, submitted(fake, row)),
        Err(status) => {
            let (code, field) = reason(&status);
            let name = field.strip_prefix("options.").unwrap_or(&field);
            let name = name.strip_prefix("sampling.").unwrap_or(name);
            Outcome::Refusal(code, name.to_owned())
        }
    }
}

async fn events(channel: Channel, row: &Value) -> Result<Vec<Event>, Status> {
    let mut client = InferenceServiceClient::new(channel);
    let mut events = Vec::new();
    if row["messages"].is_null() {
        let mut stream = client.generate(generate(row)).await?.into_inner();
        while let Some(reply) = stream.message().await? {
            events.push(reply.event.unwrap());
        }
        return Ok(events);
    }
    let mut stream = client.chat(chat(row)).await?.into_inner();
    while let Some(reply) = stream.message().await? {
        events.push(match reply.event.unwrap() {
            chat_response::Event::Started(started) => Event::Started(started),
            chat_response::Event::Delta(delta) => Event::Delta(delta),
            chat_response::Event::Finished(finished) => Event::Finished(finished),
            chat_response::Event::Done(done) => Event::Done(done),
        });
    }
    Ok(events)
}

fn answer(events: Vec<Event>, submitted: String) -> Outcome {
    let mut choices: Vec<(String, String)> = Vec::new();
    let mut used = (0, 0);
    for event in events {
        match event {
            Event::Started(_) => {}
            Event::Delta(delta) => {
                choices.resize(
                    choices.len().max(delta.choice as usize + 1),
                    Default::default(),
                );
                choices[delta.choice as usize].0 += &delta.text;
            }
            Event::Finished(finished) => {
                let name = finished.reason().as_str_name().to_lowercase();
                let name = name.trim_start_matches("finish_reason_").to_owned();
                choices[finished.choice as usize].1 = name;
            }
            Event::Done(done) => {
                let usage = done.usage.unwrap();
                used = (usage.prompt_tokens.into(), usage.completion_tokens.into());
            }
        }
    }
    Outcome::Answer(submitted, choices, used)
}

/// Asks both fronts of one service for every row of both tables; returns how many were refused.
fn compare(fake: &Fake, limits: LimitsConfig) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let service = service(fake.clone(), limits);
        let stop = Stop::default();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = http.local_addr().unwrap();
        let url = format!("http://{}", grpc.local_addr().unwrap());
        let config = HttpConfig::default();
        let http =
            dopd_router::http::serve(http, service.clone(), Arc::default(), config, stop.clone());
        let config = GrpcConfig::default();
        let grpc = dopd_router::grpc::serve(grpc, service, Arc::default(), config, stop.clone());
        let fronts = [
            tokio::task::spawn_local(http),
            tokio::task::spawn_local(grpc),
        ];
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        let prompts = PROMPTS.iter().map(|row| ("/v1/completions", row));
        let chats = CHATS.iter().map(|row| ("/v1/chat/completions", row));
        let mut refused = 0;
        for (path, row) in prompts.chain(chats) {
            let row: Value = serde_json::from_str(row).unwrap();
            let http = over_http(address, fake, path, &row).await;
            let grpc = over_grpc(channel.clone(), fake, &row).await;
            assert_eq!(http, grpc, "{path} {row}");
            refused += usize::from(matches!(http, Outcome::Refusal(..)));
        }
        stop.end.cancel();
        drop(channel);
        for front in fronts {
            front.await.unwrap();
        }
        refused
    })
}

#[test]
fn both_fronts_give_the_same_tokens_and_the_same_errors() {
    let refused = compare(&Fake::new(script()), LimitsConfig::default());
    assert_eq!(refused, REFUSED, "of {} rows", PROMPTS.len() + CHATS.len());
}

#[test]
fn both_fronts_have_the_same_limits() {
    // Of a request with two faults either may be told, so the bounds come one by one.
    let default = LimitsConfig::default;
    let bounds = [
        LimitsConfig {
            prompt_bytes_max: 1,
            ..default()
        },
        LimitsConfig {
            messages_max: 1,
            ..default()
        },
        LimitsConfig {
            choices_max: 1,
            ..default()
        },
        LimitsConfig {
            stop_strings_max: 0,
            ..default()
        },
        LimitsConfig {
            stop_bytes_max: 1,
            ..default()
        },
        LimitsConfig {
            stop_token_ids_max: 0,
            ..default()
        },
        LimitsConfig {
            logit_bias_max: 2,
            ..default()
        },
        LimitsConfig {
            top_logprobs_max: 0,
            ..default()
        },
    ];
    for limits in bounds {
        let said = format!("{limits:?}");
        let refused = compare(&Fake::new(script()), limits);
        assert!(refused > REFUSED, "only {refused} rows with {said}");
    }
}

#[test]
fn both_fronts_pass_on_what_dispatch_says() {
    let mut fake = Fake::new(script());
    fake.refusal = Some(Error::new(Reason::QueueFull, "full"));
    let refused = compare(&fake, LimitsConfig::default());
    assert_eq!(refused, PROMPTS.len() + CHATS.len());
}
