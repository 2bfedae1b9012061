//! Flags: what `python -m dopd.worker` takes is taken here too, and a fleet is laid out by role.

use clap::Parser;
use dopd_mock::{cli::Cli, model};
use dopd_router::wire::worker::Role;

fn parse(flags: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("dopd-mock").chain(flags.split_whitespace()))
}

#[test]
fn every_flag_of_the_python_worker_is_taken() {
    let cli = parse(
        "--mock --role decode --join 127.0.0.1:50052 --name d0 --served-model-name m \
         --data-host 127.0.0.1 --dtype auto --kv-memory 1MiB --max-model-len 4096 \
         --max-num-seqs 8 --max-batch-tokens 256 --page-size 16 --mock-timings h100-8b --threads 1 \
         --config f --exit-on-stdin-eof --log-level debug",
    )
    .expect("all are known");
    let configs = cli.worker_configs().expect("valid");
    assert_eq!(configs.len(), 1);
    let config = &configs[0];
    assert_eq!((config.name.as_str(), config.role), ("d0", Role::Decode));
    assert_eq!((config.pages, config.model_len_max), (8_192, 4_096));
    assert_eq!((config.num_seqs_max, config.batch_tokens_max), (8, 256));
    assert_eq!(config.model, "m");
    assert!(config.pace.timings_json().contains("h100-8b"));
    assert!(
        config.pace.pages_per_step() > 1_000,
        "a decode step of milliseconds"
    );
}

#[test]
fn fleet_is_laid_out_by_role() {
    let cli = parse("--workers prefill=2,decode=1,mixed=0 --join x:1 --pages 10").expect("known");
    let configs = cli.worker_configs().expect("valid");
    let names: Vec<_> = configs.iter().map(|c| (c.name.as_str(), c.role)).collect();
    let expected = [
        ("mock-prefill-0", Role::Prefill),
        ("mock-prefill-1", Role::Prefill),
        ("mock-decode-0", Role::Decode),
    ];
    assert_eq!(names, expected);
    let plain = |c: &dopd_mock::worker::WorkerConfig| {
        c.pages == 10 && c.model_len_max == model::MAX_MODEL_LEN && c.pace.pages_per_step() == 0
    };
    assert!(configs.iter().all(plain));
}

#[test]
fn step_ms_makes_every_step_as_long() {
    let cli = parse("--role mixed --join x:1 --step-ms 20").expect("known");
    let configs = cli.worker_configs().expect("valid");
    assert!(configs[0].pace.timings_json().contains("fixed-20000us"));
}

#[test]
fn senseless_flags_are_refused_with_the_value_named() {
    for (flags, named) in [
        ("--join x:1", "--role"),
        ("--join x:1 --workers prefill=x", "prefill=x"),
        ("--join x:1 --workers prefill=1,prefill=1", "twice"),
        ("--join x:1 --workers decode=0", "0 workers"),
        ("--join x:1 --workers decode=5000", "5000 workers"),
        ("--join x:1 --role mixed --page-size 32", "--page-size 32"),
        (
            "--join x:1 --role mixed --max-batch-tokens 10",
            "--max-batch-tokens 10",
        ),
        ("--join x:1 --role mixed --pages 0", "no page"),
        ("--join x:1 --role mixed --mock-timings nope", "nope"),
        (
            "--join x:1 --role mixed --join-token-file /does/not/exist",
            "/does/not/exist",
        ),
    ] {
        let why = parse(flags)
            .expect("parses")
            .worker_configs()
            .expect_err(flags);
        assert!(why.contains(named), "{flags}: {why}");
    }
    for flags in [
        "--role mixed",
        "--join x:1 --role none",
        "--join x:1 --kv-memory 5XB",
    ] {
        parse(flags).expect_err(flags);
    }
}
