//! Traces: every format, every way of being broken, and what chance does to them.
#![expect(
    clippy::unwrap_used,
    reason = "the lint knows test functions only, not their helpers"
)]

use std::{io::Write as _, path::PathBuf, sync::Arc};

use dopd_sim::{
    scenario::{Trace, TraceRequest},
    trace::{Sources, Spec, first_seconds, make, read, read_shape, scale},
};
use proptest::prelude::*;

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
    2023-11-16 18:17:03.9799600,4808,10\n\
    2023-11-16 18:17:04.0319600,3180,8\n";
const OURS: &str = "arrival_s,prompt_tokens,output_tokens\n0.0,4808,10\n0.052,3180,8\n";

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

fn rows(text: &str) -> Vec<(u64, u32, u32, u32)> {
    let made = read("t", text.as_bytes()).unwrap().trace;
    made.requests
        .iter()
        .map(|row| {
            (
                row.arrival.0,
                row.prompt_tokens,
                row.output_tokens,
                row.tenant,
            )
        })
        .collect()
}

fn error(text: &str) -> String {
    read("t.csv", text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn azure_tells_dates_or_seconds_and_both_are_the_same_trace() {
    assert_eq!(rows(AZURE), [(0, 4808, 10, 0), (52_000, 3180, 8, 0)]);
    assert_eq!(rows(OURS), rows(AZURE));
    let zoned = AZURE.replace("00,", "00+00:00,");
    assert_eq!(rows(&zoned), rows(AZURE));
    let midnight = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
        2024-02-28 23:59:59,1,1\n2024-02-29 00:00:01,1,1\n2024-03-01 00:00:00,1,1\n";
    let times: Vec<_> = rows(midnight).iter().map(|row| row.0 / 1_000_000).collect();
    assert_eq!(times, [0, 2, 86_401]);
}

#[test]
fn servegen_names_a_client_and_burstgpt_failures_are_left_out() {
    let servegen = "arrival_s,client,prompt_tokens,output_tokens\n0.5,48,401,380\n";
    assert_eq!(rows(servegen), [(500_000, 401, 380, 48)]);
    let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
        5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,10,0,10,Conversation log\n";
    let found = read("b", burst.as_bytes()).unwrap();
    assert_eq!((found.trace.requests.len(), found.skipped_rows), (1, 1));
    assert_eq!(found.trace.requests[0].arrival.0, 5_000_000);
}

#[test]
fn gzip_is_seen_and_a_torn_file_is_an_error() {
    let packed = gzip(OURS.as_bytes());
    assert_eq!(
        read("t", &packed).unwrap(),
        read("t", OURS.as_bytes()).unwrap()
    );
    let told = read("t.gz", &packed[..packed.len() / 2]).unwrap_err();
    assert!(
        told.to_string()
            .starts_with("t.gz: the file is \"gzip\", expected whole gzip")
    );
}

#[test]
fn rows_out_of_order_are_sorted() {
    let text = "arrival_s,prompt_tokens,output_tokens\n2,1,1\n1,2,2\n";
    assert_eq!(rows(text), [(1_000_000, 2, 2, 0), (2_000_000, 1, 1, 0)]);
}

#[test]
fn what_spreadsheets_write_is_read_as_well() {
    assert_eq!(rows(&format!("\u{feff}{OURS}")), rows(OURS));
    assert_eq!(rows(&format!("\u{feff}{}", line(5))), rows(&line(5)));
    let floats = "arrival_s,prompt_tokens,output_tokens\n0.0,4808.0,10.0\n0.052,3180.0,8.0\n";
    assert_eq!(rows(floats), rows(OURS));
}

/// A row of Mooncake's at this stamp.
fn line(at: u32) -> String {
    format!("{{\"timestamp\":{at},\"input_length\":600,\"output_length\":5,\"hash_ids\":[7,8]}}\n")
}

#[test]
fn stamps_of_mooncake_in_any_order_are_spread_over_three_seconds_at_most() {
    let text = [20_000, 0, 0, 20_000, 0].map(line).concat();
    let times: Vec<_> = rows(&text).iter().map(|row| row.0 / 1_000).collect();
    assert_eq!(times, [0, 1_000, 2_000, 20_000, 21_500]);
}

#[test]
fn stamps_of_mooncake_are_spread_until_the_next_one() {
    let text = [0, 0, 0, 3000, 3040, 3040].map(line).concat();
    let times: Vec<_> = rows(&text).iter().map(|row| row.0 / 1_000).collect();
    assert_eq!(times, [0, 1000, 2000, 3000, 3040, 4540]);
    let found = read("m", text.as_bytes()).unwrap().trace;
    assert_eq!(found.block_tokens, 512);
    assert_eq!(*found.requests[0].blocks, [7, 8]);
}

#[test]
fn a_file_of_another_kind_says_what_it_is_for() {
    for (text, told) in [
        (
            "minute,total_tokens_per_s\n0,1\n",
            "expected requests; for a load by the minute write minutes:shape=FILE",
        ),
        (
            "PAR1\u{15}\u{4}",
            "t.csv: the file is \"Parquet\", expected CSV or JSON lines",
        ),
    ] {
        let said = read("t.csv", text.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(told), "{said}\n{told}");
    }
}

#[test]
fn what_is_wrong_is_told_with_line_column_value_and_what_was_expected() {
    let head = "arrival_s,prompt_tokens,output_tokens\n";
    for (text, told) in [
        ("", "t.csv: the file is empty, expected a trace"),
        (
            "time,in,out\n",
            "t.csv:1: the header is \"time,in,out\", expected columns arrival_s",
        ),
        (
            head,
            "t.csv: the file is \"without requests\", expected at least one",
        ),
        (
            &format!("{head}0,10,5\n1.5,x,5\n"),
            "t.csv:3:5: prompt_tokens is \"x\", expected a whole number from 1 to 10000000",
        ),
        (
            &format!("{head}0,0,5\n"),
            "t.csv:2:3: prompt_tokens is \"0\", expected",
        ),
        (
            &format!("{head}0,1,0\n"),
            "t.csv:2:5: output_tokens is \"0\", expected",
        ),
        (
            &format!("{head}0,1,99999999999\n"),
            "t.csv:2:5: output_tokens is \"99999999999\"",
        ),
        (
            &format!("{head}-1,1,1\n"),
            "t.csv:2:1: arrival_s is \"-1\", expected seconds from 0",
        ),
        (
            &format!("{head}9223372036854775807-01-01 00:00:00,1,1\n"),
            "t.csv:2:1: arrival_s is \"9223372036854775807-01-01 00:00:00\", expected seconds",
        ),
        (
            &format!("{head}NaN,1,1\n"),
            "t.csv:2:1: arrival_s is \"NaN\"",
        ),
        (
            &format!("{head}1e300,1,1\n"),
            "t.csv:2:1: arrival_s is \"1e300\"",
        ),
        (
            &format!("{head}0,1\n"),
            "t.csv:2: output_tokens is empty, expected a value: the row has 2 columns, the header 3",
        ),
        (
            "{\"timestamp\":0}\n",
            "t.csv:1:15: the row is \"{\\\"timestamp\\\":0}\", expected JSON",
        ),
        ("{\"timestamp\":0,\n", "t.csv:1:"),
        (
            "{\"timestamp\":0,\"input_length\":1.5,\"output_length\":1}",
            "t.csv:1:16: input_length is \"1.5\", expected a whole number",
        ),
        (
            "{\"timestamp\":-3,\"input_length\":1,\"output_length\":1}",
            "t.csv:1:2: timestamp is \"-3\", expected milliseconds",
        ),
        (
            "{\"timestamp\":0,\"input_length\":9,\"output_length\":1,\"hash_ids\":[1,2]}",
            "hash_ids is \"2\", expected at most 1 blocks for 9 tokens",
        ),
    ] {
        let said = error(text);
        assert!(said.contains(told), "{said}\n{told}");
    }
    let long = error(&format!("{head}0,{},1\n", "9".repeat(1_000)));
    assert!(long.len() < 200, "{long}");
}

fn spec(text: &str) -> Trace {
    make(&Spec::parse(text).unwrap(), Sources::default(), 1)
}

fn cv(trace: &Trace) -> f64 {
    let gaps: Vec<f64> = trace
        .requests
        .windows(2)
        .map(|two| two[1].arrival.since(two[0].arrival).0 as f64)
        .collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let square = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
    (square / gaps.len() as f64).sqrt() / mean
}

#[test]
fn gaps_have_the_rate_and_the_variation_that_were_asked_for() {
    let poisson = spec("poisson:rate=50,prompt=100,output=10,seconds=1000");
    assert!((poisson.requests.len() as f64 / 50_000.0 - 1.0).abs() < 0.02);
    assert!((cv(&poisson) - 1.0).abs() < 0.03);
    let bursts = spec("gamma:rate=50,cv=3,prompt=100,output=10,seconds=1000");
    assert!((bursts.requests.len() as f64 / 50_000.0 - 1.0).abs() < 0.06);
    assert!((cv(&bursts) - 3.0).abs() < 0.2, "{}", cv(&bursts));
}

#[test]
fn rates_and_lengths_drift_and_vary() {
    let made = spec("poisson:rate=10..30,prompt=100..300,output=50~0.5,seconds=1000");
    let early = made
        .requests
        .iter()
        .filter(|row| row.arrival.0 < 500_000_000);
    let share = early.count() as f64 / made.requests.len() as f64;
    assert!((share - 15.0 / 40.0).abs() < 0.02, "{share}");
    assert_eq!(made.requests[0].prompt_tokens, 100);
    assert_eq!(made.requests.last().unwrap().prompt_tokens, 300);
    let mut outputs: Vec<_> = made.requests.iter().map(|row| row.output_tokens).collect();
    outputs.sort_unstable();
    let median = outputs[outputs.len() / 2];
    assert!((48..=52).contains(&median), "{median}");
}

#[test]
fn a_shift_takes_turns_and_minutes_follow_their_file() {
    let of = |tokens| {
        let text = format!("arrival_s,prompt_tokens,output_tokens\n0,{tokens},1\n");
        read("t", text.as_bytes()).unwrap().trace
    };
    let (a, b) = (of(10), of(20));
    let sources = Sources {
        a: Some(&a),
        b: Some(&b),
        shape: None,
    };
    let text = "shift:a=A,b=B,rate=20,seconds=30,rounds=2";
    let made = make(&Spec::parse(text).unwrap(), sources, 3);
    for row in &made.requests {
        let is_b = (row.arrival.0 / 30_000_000) % 2 == 1;
        assert_eq!(row.prompt_tokens, if is_b { 20 } else { 10 });
    }
    assert!(made.requests.last().unwrap().arrival.0 > 110_000_000);
    let shape = read_shape("s", b"minute,total_tokens_per_s\n0,30\n2,90\n").unwrap();
    let sources = Sources {
        shape: Some(&shape),
        ..Sources::default()
    };
    let text = "minutes:shape=S,rate=20,prompt=1,output=1";
    let made = make(&Spec::parse(text).unwrap(), sources, 3);
    let minute = |at: u64| {
        made.requests
            .iter()
            .filter(move |row| row.arrival.0 / 60_000_000 == at)
    };
    assert_eq!(minute(1).count(), 0);
    let ratio = minute(2).count() as f64 / minute(0).count() as f64;
    assert!((ratio - 3.0).abs() < 0.5, "{ratio}");
    let told = read_shape("s", b"minute,total_tokens_per_s\n0,-1\n").unwrap_err();
    assert!(
        told.to_string()
            .starts_with("s:2:3: total_tokens_per_s is \"-1\"")
    );
}

#[test]
fn a_line_that_says_nothing_is_told_where() {
    for (text, told) in [
        (
            "poisson:rate=8,prompt=x,output=1",
            "column 23: \"x\", expected prompt as a number",
        ),
        ("poisson:rate=8,prompt=1", "output=...;"),
        ("poisson:prompt=1,output=1", "expected rate="),
        (
            "poisson:rate=8,prompt=1,output=1,cv=2",
            "column 34: \"cv\", expected a key of",
        ),
        ("poisson:rate", "column 9: \"rate\", expected poisson:"),
        ("gamma:rate=8,prompt=1,output=1", "expected cv=NUMBER"),
        (
            "poisson:rate=1e6,seconds=1e6,prompt=1,output=1",
            "expected at most 20000000",
        ),
    ] {
        let said = Spec::parse(text).unwrap_err().to_string();
        assert!(said.contains(told), "{said}\n{told}");
    }
    assert!(Spec::is_one("gamma:cv=2") && !Spec::is_one("C:\\trace.csv"));
}

fn trace_of(count: u32) -> Trace {
    let requests = (0..count)
        .map(|at| TraceRequest {
            arrival: dopd_core::units::Micros(u64::from(at) * 250_000),
            prompt_tokens: 1 + at,
            output_tokens: 1 + at,
            tenant: 0,
            priority: 0,
            key: None,
            blocks: Arc::from([u64::from(at)]),
        })
        .collect();
    Trace {
        name: "t".to_owned(),
        block_tokens: 512,
        requests,
    }
}

proptest! {
    #[test]
    fn scaling_keeps_the_clock_and_the_neighbourhood(factor in 0.2_f64..6.0, seed: u64) {
        let before = trace_of(2_000);
        let after = scale(&before, factor, seed);
        prop_assert_eq!(&after, &scale(&before, factor, seed));
        let want = 2_000.0 * factor;
        prop_assert!((after.requests.len() as f64 - want).abs() < 6.0 * want.sqrt() + 1.0);
        prop_assert!(after.requests.windows(2).all(|two| two[0].arrival <= two[1].arrival));
        // Drift is kept: who comes at a time has the lengths of that time, +-50 places and +-2 s.
        for row in &after.requests {
            let place = row.arrival.0 as f64 / 250_000.0;
            prop_assert!((place - f64::from(row.prompt_tokens - 1)).abs() <= 50.0 + 8.0 + 1.0);
            prop_assert_eq!(row.prompt_tokens, row.output_tokens);
        }
        let end = after.requests.last().map_or(0, |row| row.arrival.0);
        prop_assert!(end <= 2_000 * 250_000 + 2_000_000);
    }
}

#[test]
fn a_factor_of_one_changes_nothing_and_copies_share_no_prefix() {
    let before = trace_of(500);
    assert_eq!(scale(&before, 1.0, 9), before);
    let after = scale(&before, 2.0, 9);
    assert_eq!(after.requests.len(), 1_000);
    let first = after
        .requests
        .iter()
        .filter(|row| row.blocks[0] < 500)
        .count();
    assert_eq!(first, 500);
    let stamped = after
        .requests
        .iter()
        .filter(|row| row.arrival.0 % 250_000 == 0);
    assert!(stamped.count() < 10, "copies come at times of their own");
    assert!(
        first_seconds(after, 10.0)
            .requests
            .iter()
            .all(|row| row.arrival.0 < 10_000_000)
    );
}

/// Rows of the open traces as their README counts them.
#[test]
fn the_open_traces_are_read() {
    let folder = std::env::var_os("DOPD_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    if !folder.join("traces").is_dir() {
        eprintln!("skipped: no traces in {}; set DOPD_DATA", folder.display());
        return;
    }
    for (name, count, last_s) in [
        ("azure2023_code_part1.csv.gz", 5_353, 1_706),
        ("azure2023_conv_part1.csv.gz", 9_739, 1_751),
        ("mooncake_conversation_part1.jsonl.gz", 5_606, 1_767),
        ("mooncake_synthetic_part1.jsonl.gz", 1_925, 511),
        ("servegen_m-large_day2_generated.csv.gz", 15_517, 3_600),
        (
            "servegen_deepseek-r1_halfday0_generated.csv.gz",
            7_494,
            3_600,
        ),
    ] {
        let bytes = std::fs::read(folder.join("traces").join(name)).unwrap();
        let trace = read(name, &bytes).unwrap().trace;
        assert_eq!(trace.requests.len(), count, "{name}");
        let end = trace.requests[count - 1].arrival.0 / 1_000_000;
        assert!(end.abs_diff(last_s) <= 3, "{name} ends at {end} s");
    }
    let name = "burstgpt_week1_minutes_part1.csv.gz";
    let bytes = std::fs::read(folder.join("traces").join(name)).unwrap();
    assert_eq!(read_shape(name, &bytes).unwrap().tokens_per_s.len(), 5_039);
}
