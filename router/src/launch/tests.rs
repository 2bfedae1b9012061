use std::path::{Path, PathBuf};

use super::{
    GpuCount, Launch,
    cli::{self, ConfigPlan, Plan, ServePlan},
    model, workers,
};
use crate::config::{self, Scope};

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn plan(line: &str) -> ServePlan {
    match cli::parse("dopd", &words(line), Vec::new()) {
        Ok(Plan::Serve(plan)) => plan,
        other => panic!("{other:?}"),
    }
}

/// Exit code and text of what clap shows for `line`.
fn shown(line: &str) -> (i32, String) {
    match cli::parse("dopd", &words(line), Vec::new()) {
        Err(shown) => (shown.code, shown.error.to_string()),
        Ok(plan) => panic!("{plan:?}"),
    }
}

fn settings(line: &str) -> config::Settings {
    let plan = plan(line);
    config::load(&plan.sources, plan.scope).unwrap()
}

/// What `line` shows on a terminal of 100 columns.
fn help(line: &str) -> String {
    let command = cli::command("dopd").term_width(100);
    command
        .try_get_matches_from(words(line))
        .unwrap_err()
        .to_string()
}

#[test]
fn help_of_serve() {
    assert_eq!(shown("serve --help").0, 0);
    insta::assert_snapshot!(help("dopd serve --help"));
}

#[test]
fn help_of_router() {
    insta::assert_snapshot!(help("dopd router --help"));
}

#[test]
fn usage_errors_have_code_2_and_a_suggestion() {
    let (code, text) = shown("serve --prot 1");
    assert_eq!(code, 2);
    assert!(text.contains("'--port'"), "{text}");
    for line in ["", "serv", "serve a b", "serve a --model b", "router a b"] {
        assert_eq!(shown(line).0, 2, "{line:?}");
    }
}

#[test]
fn flags_reach_their_settings() {
    let config = settings(
        "serve ./model --prefill 2 --decode 3 --host 127.0.0.2 --port 1 --grpc-port 2 \
         --worker-port 3 --metrics-port 4 --dtype float32 --kv-memory 1GiB --max-model-len 512 \
         --attention torch --max-num-seqs 7 --served-model-name me --record log \
         --log-level debug --log-format json \
         --slo-ttft-ms 200 --slo-tpot-ms 50 --worker-arg=--threads=2 --worker-arg --x",
    )
    .config;
    assert_eq!(config.model.path.as_deref(), Some(Path::new("./model")));
    assert_eq!(config.model.served_name.as_deref(), Some("me"));
    assert_eq!(config.model.max_model_len, Some(512));
    let cluster = &config.cluster;
    assert_eq!((cluster.prefill, cluster.decode, cluster.mixed), (2, 3, 0));
    assert_eq!(cluster.max_num_seqs, Some(7));
    assert_eq!(cluster.attention, "torch");
    assert_eq!(cluster.kv_memory.as_deref(), Some("1GiB"));
    assert_eq!(cluster.worker_args, ["--threads=2", "--x"]);
    assert_eq!(config.http.host.to_string(), "127.0.0.2");
    let ports = [
        config.http.port,
        config.grpc.port,
        config.workers.port,
        config.admin.port,
    ];
    assert_eq!(ports, [1, 2, 3, 4]);
    assert_eq!(
        (config.slo.ttft_ms, config.slo.tpot_ms),
        (Some(200), Some(50))
    );
    assert_eq!(config.log.record.as_deref(), Some(Path::new("log")));
}

#[test]
fn a_switch_that_is_not_given_says_nothing() {
    let mut plan = plan("serve");
    plan.sources
        .variables
        .push(("DOPD_CLUSTER__MOCK".to_owned(), "true".to_owned()));
    assert!(
        config::load(&plan.sources, plan.scope)
            .unwrap()
            .config
            .cluster
            .mock
    );
}

#[test]
fn settings_file_from_flag_or_environment() {
    let variables = vec![("DOPD_CONFIG".to_owned(), "a.toml".to_owned())];
    let file = |line| match cli::parse("dopd", &words(line), variables.clone()) {
        Ok(Plan::Serve(plan)) => plan.sources.file,
        other => panic!("{other:?}"),
    };
    assert_eq!(file("serve"), Some(PathBuf::from("a.toml")));
    assert_eq!(file("serve -c b.toml"), Some(PathBuf::from("b.toml")));
}

#[test]
fn a_negative_port_is_refused_by_its_limits() {
    let plan = plan("serve --port -1");
    let refusal = config::load(&plan.sources, plan.scope)
        .unwrap_err()
        .to_string();
    assert_eq!(
        refusal,
        "http.port is -1, allowed are whole numbers 0 to 65535 (from --port)"
    );
}

#[test]
fn config_show_takes_the_flags_of_serve() {
    let line = "config show --origin --port 1 --mock -c x.toml";
    let Ok(Plan::Config(ConfigPlan::Show {
        serve,
        with_origin,
        as_json,
    })) = cli::parse("dopd", &words(line), Vec::new())
    else {
        panic!("{line}")
    };
    assert!(with_origin && !as_json);
    assert_eq!(serve.sources.file, Some(PathBuf::from("x.toml")));
    let flags: Vec<&str> = serve
        .sources
        .flags
        .iter()
        .map(|(field, _)| field.path)
        .collect();
    assert_eq!(flags, ["cluster.mock", "http.port"]);
    for line in ["config", "config check", "config show --prot 1"] {
        assert_eq!(shown(line).0, 2, "{line:?}");
    }
}

/// What resolving the model of `line` says: its path, or the refusal.
fn resolve(line: &str, scope: Scope) -> Result<Option<PathBuf>, String> {
    let known = [
        ("demo".to_owned(), Some(PathBuf::from("/models/demo.gguf"))),
        ("smollm2".to_owned(), None),
    ];
    let mut config = settings(line).config;
    model::resolve(&mut config, &known, scope)
        .map(|()| config.model.path)
        .map_err(|failure| failure.to_string())
}

#[test]
fn known_names_become_paths() {
    let path = resolve("serve demo", Scope::Serve).unwrap();
    assert_eq!(path, Some(PathBuf::from("/models/demo.gguf")));
}

#[test]
fn models_that_are_not_there_are_refused_with_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.bin");
    std::fs::write(&file, "").unwrap();
    let refusals = [
        resolve("serve", Scope::Serve),
        resolve("serve smollm2", Scope::Serve),
        resolve("serve ./nowhere", Scope::Serve),
        resolve("serve meta-llama/Llama-3.1-8B", Scope::Serve),
        resolve("serve demo --mock", Scope::Serve),
        resolve(&format!("serve {}", file.display()), Scope::Serve),
        resolve(&format!("serve {}", folder.path().display()), Scope::Serve),
    ];
    let text = refusals.map(Result::unwrap_err).join("\n");
    insta::assert_snapshot!(text.replace(&folder.path().display().to_string(), "FOLDER"));
}

#[test]
fn a_router_needs_a_tokenizer_only() {
    assert_eq!(resolve("router --tokenizer x", Scope::Router), Ok(None));
    assert!(resolve("router", Scope::Router).is_err());
}

#[test]
fn made_up_models_need_no_files() {
    let made_up = resolve("serve random:tiny:3", Scope::Serve);
    assert_eq!(made_up, Ok(Some(PathBuf::from("random:tiny:3"))));
    let refusal = resolve("serve random:huge", Scope::Serve).unwrap_err();
    assert!(
        refusal.contains("no such shape; there are tiny"),
        "{refusal}"
    );
}

/// What each local worker is told of its GPU, where so many are found.
fn told_of_gpus(line: &str, gpus: Result<u32, String>) -> Vec<String> {
    let launch = Launch {
        argv: Vec::new(),
        worker_command: None,
        known_models: Vec::new(),
        worker_table: None,
        gpus: Some(GpuCount::new(move || gpus.clone())),
        program: "dopd",
    };
    let settings = settings(line);
    let shares = workers::shares(&launch, Scope::Serve, &settings.config);
    let join = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let specs = workers::specs(&settings, join, "m", &shares);
    let told = |args: &[String]| {
        let is_told = |flag: &str| flag == "--device" || flag == "--gpu-memory-utilization";
        let pairs = args.windows(2).filter(|pair| is_told(&pair[0]));
        pairs
            .map(|pair| pair[1].clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    specs.iter().map(|spec| told(&spec.args)).collect()
}

#[test]
fn local_workers_are_told_their_gpu_and_their_share_of_it() {
    let pair = "serve random:tiny";
    assert_eq!(
        told_of_gpus(pair, Ok(1)),
        ["cuda:0 0.4500", "cuda:0 0.4500"]
    );
    assert_eq!(
        told_of_gpus(pair, Ok(2)),
        ["cuda:0 0.9000", "cuda:1 0.9000"]
    );
    let three = "serve random:tiny --decode 2 --gpu-memory-utilization 0.6";
    let shares = ["cuda:0 0.3000", "cuda:1 0.6000", "cuda:0 0.3000"];
    assert_eq!(told_of_gpus(three, Ok(2)), shares);
    let nothing = ["", ""];
    assert_eq!(told_of_gpus(pair, Ok(0)), nothing);
    assert_eq!(told_of_gpus(pair, Err("broken".to_owned())), nothing);
    assert_eq!(told_of_gpus("serve --mock", Ok(4)), nothing);
}

#[test]
fn a_share_of_memory_is_a_share() {
    for share in ["0", "1.1", "-0.5"] {
        let plan = plan(&format!("serve --mock --gpu-memory-utilization={share}"));
        let refusal = config::load(&plan.sources, plan.scope).unwrap_err();
        assert!(
            refusal.to_string().contains("above 0 and at most 1"),
            "{refusal}"
        );
    }
}

#[test]
fn serve_without_a_worker_command_fails_before_anything_is_loaded() {
    let line = "serve --mock --port 0 --grpc-port 0 --worker-port 0 --metrics-port 0";
    let launch = Launch {
        argv: words(line),
        worker_command: None,
        known_models: Vec::new(),
        worker_table: None,
        gpus: None,
        program: "dopd",
    };
    assert_eq!(super::main(&launch), 2);
}
