//! Known answers of the mock model, shared with the Python mock engine.
//!
//! `tests/contract/mock_vectors.json` holds prompts, sampling and what must come out. Here the seat
//! table computes them through its pages. `DOPD_BLESS=1` writes the file anew.

#![expect(clippy::expect_used, reason = "helpers of tests stop the test")]

use std::path::PathBuf;

use dopd_core::{cost::Timings, units::Micros};
use dopd_mock::{
    model,
    seats::{Event, Seats, SeatsConfig, Terms},
};
use dopd_router::wire::worker::{
    Command, Compute, Limits, LogitAdjustments, Open, Report, Role, Sampling, command, open,
};
use serde_json::{Value, json};

const MAX_TOKENS: u32 = 40;
const SLOT: u32 = 0;

fn sampling(temperature: f32, seed: u64, choice: u32, top_logprobs: Option<u32>) -> Sampling {
    Sampling {
        temperature,
        top_p: 1.0,
        seed,
        choice,
        top_logprobs,
        ..Sampling::default()
    }
}

fn text(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Bias by token.
type Bias = Vec<(u32, f32)>;

/// Name, prompt, sampling, bias. `ends` draws the end token within its 40 tokens.
fn cases() -> Vec<(&'static str, Vec<u32>, Sampling, Bias)> {
    let mut chat = vec![256];
    chat.extend(text("user\nhello"));
    chat.extend([257, 10, 256]);
    chat.extend(text("assistant\n"));
    let long = (0..300).map(|index| (index * 7) % 256).collect();
    let vowels = "aeiou".bytes().map(|byte| (u32::from(byte), -100.0));
    let plain: [(_, _, _, Bias); 10] = [
        ("greedy", text("hello"), sampling(0.0, 0, 0, None), vec![]),
        (
            "greedy_logprobs",
            text("a"),
            sampling(0.0, 99, 3, Some(3)),
            vec![],
        ),
        (
            "sampled",
            text("hello"),
            sampling(1.0, 42, 0, Some(0)),
            vec![],
        ),
        (
            "sampled_choice",
            text("hello"),
            sampling(1.0, 42, 5, Some(2)),
            vec![],
        ),
        (
            "seed_is_64_bit",
            chat,
            sampling(0.7, u64::MAX, 0, Some(20)),
            vec![],
        ),
        ("long_prompt", long, sampling(0.5, 1, 0, None), vec![]),
        (
            "no_vowels",
            text("hello"),
            sampling(1.0, 7, 0, Some(2)),
            vowels.collect(),
        ),
        (
            "always_a_line_feed",
            text("a"),
            sampling(0.0, 0, 0, Some(3)),
            vec![(97, 99.0), (10, 100.0)],
        ),
        (
            "only_the_end_is_left",
            text("a"),
            sampling(1.0, 1, 0, None),
            (32..127).map(|t| (t, -100.0)).collect(),
        ),
        (
            "ends",
            text("hello"),
            sampling(1.0, END_SEED, 0, Some(3)),
            vec![],
        ),
    ];
    plain.into()
}

/// Found by trying: the end token is drawn after "hello" within 40 tokens.
const END_SEED: u64 = 4;

struct Answer {
    tokens: Vec<u32>,
    reports: Vec<Report>,
    page: Vec<u8>,
}

/// The answer as a worker with an unusual chunk size gives it.
fn serve(prompt: &[u32], sampling: Sampling, bias: &[(u32, f32)]) -> Answer {
    let mut seats = Seats::new(SeatsConfig {
        worker: "vectors".to_owned(),
        incarnation: 1,
        data_address: String::new(),
        pages_total: 32,
        num_seqs_max: 1,
        batch_tokens_max: 37,
        model_len_max: 4_096,
        in_flight_bytes_max: 0,
        timings: Timings::instant(),
        role: Role::Mixed,
        nonce_seed: 1,
    });
    let length = u32::try_from(prompt.len()).expect("short");
    let open = command::Kind::Open(Open {
        slot: SLOT,
        pages: 32,
        prompt_tokens: length,
        prompt_hash: model::prompt_hash(prompt),
        sampling: Some(sampling),
        adjustments: Some(LogitAdjustments {
            bias_tokens: bias.iter().map(|(token, _)| *token).collect(),
            bias_values: bias.iter().map(|(_, value)| *value).collect(),
            ..LogitAdjustments::default()
        }),
        prompt_logprobs: sampling.top_logprobs,
        limits: Some(Limits {
            max_tokens: MAX_TOKENS,
            ignore_eos: true,
            ..Limits::default()
        }),
        kind: Some(open::Kind::Compute(Compute {
            prompt: prompt.to_vec(),
            answer: Vec::new(),
            prompt_group: 0,
        })),
        ..Open::default()
    });
    seats.handle(Micros(0), Event::SessionUp(Terms::plain(1)));
    seats.handle(Micros(0), Event::Command(1, Command { kind: Some(open) }));
    let mut answer = Answer {
        tokens: Vec::new(),
        reports: Vec::new(),
        page: Vec::new(),
    };
    while let Some(batch) = seats.begin_step(Micros(0), 1) {
        let pages = seats.seat(SLOT).expect("open").pages.clone();
        seats.finish_step(Micros(0), &batch, 0);
        let report = seats.take_report(0).expect("session");
        answer.tokens.extend(&report.tokens);
        answer.reports.push(report);
        answer.page = seats.pool().read(&pages[..1]);
    }
    answer
}

fn vector(name: &str, prompt: &[u32], sampling: Sampling, bias: &[(u32, f32)]) -> Value {
    let answer = serve(prompt, sampling, bias);
    let prompt_hash = model::prompt_hash(prompt);
    let logprobs: Vec<_> = answer
        .reports
        .iter()
        .filter_map(|r| r.logprobs.as_ref())
        .collect();
    let chosen: Vec<f32> = logprobs.iter().flat_map(|l| l.chosen.clone()).collect();
    let top_tokens: Vec<&[u32]> = logprobs.iter().map(|l| &l.top_tokens[..]).collect();
    let top_logprobs: Vec<&[f32]> = logprobs.iter().map(|l| &l.top_logprobs[..]).collect();
    let told: Vec<_> = (answer.reports.iter())
        .filter_map(|r| r.prompt_logprobs.as_ref())
        .collect();
    let prompt_chosen: Vec<f32> = told.iter().flat_map(|p| p.chosen.clone()).collect();
    let prompt_tokens: Vec<u32> = told.iter().flat_map(|p| p.top_tokens.clone()).collect();
    let prompt_values: Vec<f32> = told.iter().flat_map(|p| p.top_logprobs.clone()).collect();
    json!({
        "name": name,
        "prompt": prompt,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "choice": sampling.choice,
        "top_logprobs": sampling.top_logprobs,
        "bias": bias,
        "prompt_hash": format!("{prompt_hash:016x}"),
        "tokens": answer.tokens,
        "tokens_hash": format!("{:016x}", model::tokens_hash(prompt_hash, &answer.tokens)),
        "logprobs": chosen,
        "top_tokens": top_tokens,
        "top_token_logprobs": top_logprobs,
        "prompt_logprobs": prompt_chosen,
        "prompt_top_tokens": prompt_tokens,
        "prompt_top_logprobs": prompt_values,
        "first_page": hex(&answer.page),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

fn vectors() -> String {
    let geometry = model::geometry();
    let cases: Vec<Value> = cases()
        .into_iter()
        .map(|(name, prompt, sampling, bias)| vector(name, &prompt, sampling, &bias))
        .collect();
    let all = json!({
        "about": "mock model: what every implementation must draw (eos ignored); hashes are u64 \
                  in hex; first_page after the last step, its positions beyond the end are 0",
        "model_hash": hex(&geometry.model_hash),
        "layout_hash": format!("{:016x}", model::layout_hash(&geometry)),
        "max_tokens": MAX_TOKENS,
        "cases": cases,
    });
    let mut lines = String::from("{\n");
    for (key, value) in all.as_object().expect("an object") {
        if key == "cases" {
            let cases: Vec<String> = cases_lines(value);
            lines += "\"cases\": [\n";
            lines += &cases.join(",\n");
            lines += "\n]\n";
        } else {
            lines += &Value::from(key.as_str()).to_string();
            lines += ": ";
            lines += &value.to_string();
            lines += ",\n";
        }
    }
    lines + "}\n"
}

/// One case a line: a difference in the file shows which.
fn cases_lines(cases: &Value) -> Vec<String> {
    let cases = cases.as_array().expect("a list");
    cases.iter().map(Value::to_string).collect()
}

#[test]
fn mock_model_gives_the_known_answers() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/contract/mock_vectors.json");
    let now = vectors();
    if std::env::var_os("DOPD_BLESS").is_some() {
        std::fs::write(&path, &now).expect("the folder is writable");
    }
    let known = std::fs::read_to_string(&path).expect("the file is committed");
    assert!(
        now == known,
        "the mock model changed; the Python side must change with it:\n{now}"
    );
}

#[test]
fn vectors_cover_the_end_token() {
    let (_, prompt, sampling, bias) = cases().pop().expect("cases");
    let tokens = serve(&prompt, sampling, &bias).tokens;
    assert!(tokens.contains(&model::EOS), "{tokens:?}");
    assert!(!tokens[..32].contains(&model::EOS));
}
