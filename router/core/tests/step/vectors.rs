//! Known answers for Python's batcher: `tests/contract/step_vectors.json`. `DOPD_BLESS=1` writes
//! the file anew.

use std::path::PathBuf;

use dopd_core::{
    cost::Timings,
    step::{Belief, Residents, Stay, StepChoice, StepMode, StepPolicy, StepView, StepWork, choose},
    units::{Micros, Tokens},
};
use serde_json::{Value, json};

const NOW_US: u64 = 5_000_000;

/// splitmix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn small(&mut self, bound: u32) -> u32 {
        u32::try_from(self.below(u64::from(bound))).expect("below a u32")
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }
}

/// A slow device, on which a step takes longer than the target.
fn slow_cpu() -> Timings {
    Timings {
        name: "slow-cpu".to_owned(),
        step_prefill_us: 900.0,
        step_decode_us: 700.0,
        weights_us: 61_000.0,
        memory_us_per_token: 150.0,
        compute_us_per_token: 810.0,
        attention_us_per_pair: 0.02,
        context_us_per_token: 1.5,
        batch_us_per_seq: 900.0,
        mixed_penalty_ratio: 0.3,
        ..Timings::instant()
    }
}

fn calibrations() -> [Timings; 4] {
    let builtin = |name| Timings::builtin(name).expect("a built-in calibration");
    [
        builtin("instant"),
        builtin("h100-8b"),
        builtin("h100-70b"),
        slow_cpu(),
    ]
}

/// One question of many kinds, from small numbers.
fn choice(random: &mut Random) -> Value {
    let timings = random.of(&[0, 1, 1, 1, 2, 2, 3]);
    let timings = &calibrations()[timings];
    let modes = [StepMode::Fill, StepMode::Chunk, StepMode::ChunkInTime];
    let is_default = random.below(4) > 0;
    let policy = StepPolicy {
        mode: if is_default {
            StepMode::PauseOrMix
        } else {
            random.of(&modes)
        },
        chunk_tokens: Tokens(random.of(&[1, 300, 512, 2_048])),
        tpot: Micros::from_millis(random.of(&[20, 30, 80, 80])),
        probe_every: random.of(&[1, 8, 50, 50, 50, 50]),
        slack_quantile: random.of(&[0.0, 0.05, 0.5, 1.0]),
        mixed_penalty_start: random.of(&[0.0, 0.03, 0.2, 0.2, 0.45]),
        pause_min: Micros::from_millis(random.of(&[5, 50])),
        ..StepPolicy::default()
    };
    let (pauses, decodes) = (
        random.of(&[0, 0, 6, 7, 48, 49]),
        random.of(&[0, 0, 0, 49, 50]),
    );
    let seqs = random.of(&[0_u32, 1, 3, 20, 60]);
    let last = NOW_US - random.of(&[0, 0, 0, 30_000, 70_000, 120_000]);
    let members: Vec<(u64, u64, u32)> = (0..seqs)
        .map(|_| {
            let tpot = random.of(&[0, 0, 0, 0, 40_000, 100_000]);
            let age = random.below(400_000);
            let tokens = 1 + age / random.of(&[9_000, 12_000, 20_000, 40_000]);
            (tpot, last - age, u32::try_from(tokens).expect("few"))
        })
        .collect();
    let is_pinned = random.below(8) == 0;
    let prompts: Vec<(u32, u32)> = (0..random.of(&[0, 1, 1, 1, 2, 5]))
        .map(|_| (1 + random.small(3_000), random.of(&[0, 0, 512, 9_001])))
        .collect();
    let context = u64::from(seqs) * random.below(3_000);
    let view = json!({
        "now_us": NOW_US,
        "is_decode": random.below(2) == 0,
        "tokens_max": if is_pinned { seqs.max(1) } else { random.of(&[256, 2_048, 8_192]) },
        "decode_seqs": seqs,
        "decode_context": context,
        "prompts": prompts,
        "last_us": last,
        "residents": members,
    });
    let mut case = json!({
        "timings": timings.name,
        "policy": policy,
        "pauses": pauses,
        "decodes": decodes,
        "view": view,
    });
    case["expected"] = answer(&case);
    case
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn small(value: &Value) -> u32 {
    u32::try_from(number(value)).expect("a small number")
}

/// What the code says to a question as the file has it.
fn answer(case: &Value) -> Value {
    let policy: StepPolicy = serde_json::from_value(case["policy"].clone()).expect("a policy");
    let mut belief = Belief::new(&policy);
    for _ in 0..number(&case["pauses"]) {
        belief.began(StepChoice::Prefill(Tokens(1)), true, true);
    }
    for _ in 0..number(&case["decodes"]) {
        belief.began(StepChoice::Decode, true, true);
    }
    let view = &case["view"];
    let mut residents = Residents::new();
    for member in view["residents"].as_array().expect("a list") {
        let (tpot, first) = (Micros(number(&member[0])), Micros(number(&member[1])));
        residents.join(
            &policy,
            Micros(number(&view["last_us"])),
            tpot,
            first,
            small(&member[2]),
        );
    }
    let prompts: Vec<(u32, u32)> =
        serde_json::from_value(view["prompts"].clone()).expect("pairs of numbers");
    let step = StepView {
        now: Micros(number(&view["now_us"])),
        is_decode: view["is_decode"].as_bool().expect("a flag"),
        tokens_max: small(&view["tokens_max"]),
        residents: &residents,
        decode_seqs: small(&view["decode_seqs"]),
        decode_context: number(&view["decode_context"]),
        prompts: &prompts,
    };
    let all = calibrations();
    let timings = all.iter().find(|timings| case["timings"] == timings.name);
    let timings = timings.expect("a calibration");
    let decode = StepWork::decode(step.decode_seqs, step.decode_context);
    let decode_us = timings.plain_us(decode);
    let whole = decode.with_prompts(&prompts, 500);
    json!({
        "choice": choose(&policy, &belief, &step, timings),
        "slack_us": residents.slack_us(step.now, decode_us, policy.slack_quantile),
        "decode_us": decode_us,
        "plain_500_us": timings.plain_us(whole),
        "mixed_500_us": belief.expected_us(timings.plain_us(whole), whole.is_mixed()),
    })
}

/// A belief step by step: predicted and measured times, and what is believed then.
fn beliefs(random: &mut Random) -> Vec<Value> {
    [0.0, 0.2, 3.0]
        .map(|start| {
            let mut belief = Belief::new(&StepPolicy {
                mixed_penalty_start: start,
                ..Default::default()
            });
            let steps: Vec<Value> = (0..40)
                .map(|_| {
                    let plain = random.below(50_000);
                    let took = plain * random.of(&[900, 1_100, 1_300, 1_400, 9_000]) / 1_000;
                    belief.measured(plain, took);
                    json!([
                        plain,
                        took,
                        belief.penalty_ratio(),
                        belief.penalty_permille()
                    ])
                })
                .collect();
            json!({"start": start, "steps": steps})
        })
        .to_vec()
}

/// Joining, leaving and stepping, with the slack after each.
fn stays(random: &mut Random) -> Value {
    let policy = StepPolicy::default();
    let (mut residents, mut here) = (Residents::new(), Vec::<(u32, Stay)>::new());
    let mut now = Micros(0);
    let mut ops = Vec::new();
    for name in 0..200 {
        now = now.plus(Micros(random.below(90_000)));
        let op = match random.below(5) {
            0 | 1 => {
                let tpot = Micros(random.of(&[0, 0, 30_000, 200_000]));
                let (age, tokens) = (Micros(random.below(now.0 + 1)), 1 + random.small(9));
                let first = now.since(age);
                here.push((name, residents.join(&policy, now, tpot, first, tokens)));
                json!({"join": [name, tpot, first, tokens]})
            }
            2 if !here.is_empty() => {
                let place = usize::try_from(random.below(here.len() as u64)).expect("an index");
                let (name, stay) = here.swap_remove(place);
                residents.leave(stay);
                json!({"leave": name})
            }
            _ => {
                residents.stepped(now);
                json!("stepped")
            }
        };
        let slack = |quantile| residents.slack_us(now, 21_000, quantile);
        ops.push(json!({
            "now_us": now,
            "op": op,
            "count": residents.len(),
            "gap_us": residents.gap(now),
            "tpot_min_us": residents.tpot_min(21_000),
            "slack_us": [slack(0.0), slack(0.05), slack(0.5), slack(1.0)],
        }));
    }
    json!({"policy": policy, "decode_us": 21_000, "ops": ops})
}

fn vectors() -> Value {
    let mut random = Random(6);
    let choices: Vec<Value> = (0..300).map(|_| choice(&mut random)).collect();
    json!({
        "timings": calibrations(),
        "choices": choices,
        "beliefs": beliefs(&mut random),
        "residents": stays(&mut random),
    })
}

#[test]
fn the_vectors_are_what_the_code_says() {
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/contract/step_vectors.json"
    ));
    let now = vectors();
    if std::env::var_os("DOPD_BLESS").is_some() {
        std::fs::write(&path, format!("{}\n", lines(&now))).expect("the vectors are written");
    }
    let text = std::fs::read_to_string(&path).expect("the vectors");
    let kept: Value = serde_json::from_str(&text).expect("JSON");
    let told = "the file differs, DOPD_BLESS=1 writes it anew";
    for name in ["timings", "choices", "beliefs"] {
        let list = |all: &Value| all[name].as_array().expect("a list").clone();
        // One by one: all of them are a megabyte.
        for (place, (kept, now)) in list(&kept).iter().zip(&list(&now)).enumerate() {
            assert_eq!(kept, now, "{name} {place}: {told}");
        }
    }
    assert!(kept == now, "{}: {told}", path.display());
}

/// One case a line: what changes shows in a diff.
fn lines(all: &Value) -> String {
    let list = |name: &str| {
        let items = all[name].as_array().expect("a list");
        let items: Vec<String> = items.iter().map(Value::to_string).collect();
        format!("\"{name}\": [\n{}\n]", items.join(",\n"))
    };
    let residents = format!("\"residents\": {}", all["residents"]);
    let parts = [list("timings"), list("choices"), list("beliefs"), residents];
    format!("{{\n{}\n}}", parts.join(",\n"))
}

/// The file asks about every branch.
#[test]
fn the_vectors_hold_every_answer() {
    let all = vectors();
    let choices = all["choices"].as_array().expect("a list");
    let count = |is: &dyn Fn(&Value) -> bool| choices.iter().filter(|case| is(case)).count();
    let is_both = |case: &Value| {
        number(&case["view"]["decode_seqs"]) > 0
            && case["policy"]["mode"] == "pause_or_mix"
            && !case["view"]["prompts"].as_array().is_none_or(Vec::is_empty)
    };
    let pauses = count(&|case| is_both(case) && case["expected"]["choice"]["prefill"].is_u64());
    let mixed = count(&|case| is_both(case) && case["expected"]["choice"]["mixed"].is_u64());
    let decodes = count(&|case| is_both(case) && case["expected"]["choice"] == "decode");
    let idle = count(&|case| case["expected"]["choice"] == "idle");
    let seen = [pauses, mixed, decodes, idle];
    assert!(
        seen.iter().all(|&count| count >= 8),
        "pauses, mixed, decodes, idle: {seen:?}"
    );
}
