//! The local workers of `serve`: which there are, and the command line of each.

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use super::{
    GpuCount, Launch,
    console::{Failure, note},
    loading::Loading,
    token::JoinToken,
};
use crate::{
    cluster::{
        embedded::{LineSink, RestartPolicy, SupervisorConfig, WorkerSpec},
        gpus::{GpuShare, gpu_shares},
    },
    config::{Config, Scope, Settings, Sources},
    trace,
};

/// How local workers are run: by the command of the settings, else by the launcher's own.
pub(super) fn supervisor(
    launch: &Launch,
    settings: &Settings,
    sources: &Sources,
    token: &JoinToken,
    loading: &Arc<Loading>,
) -> Result<SupervisorConfig, Failure> {
    let cluster = &settings.config.cluster;
    let command = if cluster.worker_command.is_empty() {
        launch.worker_command.clone().unwrap_or_default()
    } else {
        cluster.worker_command.clone()
    };
    if command.is_empty() {
        return Err(
            Failure::usage("local workers are Python programs, which this binary lacks")
                .with_fix("pip install dopd && dopd serve ..., or --worker-command"),
        );
    }
    // One thread per worker's kernels: workers share the cores. What the user set stays.
    let variables = [("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")]
        .into_iter()
        .filter(|(name, _)| !sources.is_set(name))
        .chain([("DOPD_JOIN_TOKEN", token.token.as_str())])
        .chain(loading.is_live().then_some(("DOPD_PROGRESS", "1")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Ok(SupervisorConfig {
        command,
        variables,
        restart: RestartPolicy::default(),
        drain_timeout: Duration::from_millis(cluster.drain_timeout_ms),
        stop_timeout: Duration::from_millis(cluster.stop_timeout_ms),
        output: output(&settings.config.log.format, Arc::clone(loading)),
    })
}

/// Workers' lines go to standard error: behind the name, or, if logs are JSON, as the objects that
/// workers write then; what is none (a traceback, a library's warning) becomes a log event.
fn output(format: &str, loading: Arc<Loading>) -> LineSink {
    if format == "json" {
        Arc::new(|name, line| {
            let object = serde_json::from_str::<serde_json::Map<_, _>>(line);
            if object.is_ok() {
                note(line);
            } else {
                tracing::info!(worker = name, "{line}");
            }
        })
    } else {
        Arc::new(move |name, line| {
            if !loading.take(name, line) {
                note(&format!("[{name}] {}", printable(line)));
            }
        })
    }
}

/// `line` without characters that steer a terminal.
fn printable(line: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\t';
    if !line.contains(steers) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 8);
    for c in line.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The GPU of each local worker, by its name; empty: none has one, or nobody could say.
pub(super) fn shares(launch: &Launch, scope: Scope, config: &Config) -> BTreeMap<String, GpuShare> {
    let cluster = &config.cluster;
    let needs_any = scope == Scope::Serve && !cluster.mock;
    let count = launch.gpus.as_ref().filter(|_| needs_any);
    let gpus = count.map_or(Ok(0), |GpuCount(count)| count());
    let gpus = gpus.unwrap_or_else(|error| {
        tracing::warn!("cannot count GPUs, workers choose their device themselves: {error}");
        0
    });
    let workers = cluster.prefill + cluster.decode + cluster.mixed;
    names(config)
        .zip(gpu_shares(workers, gpus, cluster.gpu_memory_utilization))
        .collect()
}

/// All local workers, in the order of the banner.
pub(super) fn specs(
    settings: &Settings,
    join: SocketAddr,
    model: &str,
    shares: &BTreeMap<String, GpuShare>,
) -> Vec<WorkerSpec> {
    roles(&settings.config)
        .map(|(role, name)| {
            let args = args(settings, role, join, model, shares.get(&name));
            WorkerSpec { name, args }
        })
        .collect()
}

/// Their names.
pub(super) fn names(config: &Config) -> impl Iterator<Item = String> {
    roles(config).map(|(_, name)| name)
}

/// Role and name of each.
fn roles(config: &Config) -> impl Iterator<Item = (&'static str, String)> {
    let cluster = &config.cluster;
    [
        ("prefill", cluster.prefill),
        ("decode", cluster.decode),
        ("mixed", cluster.mixed),
    ]
    .into_iter()
    .flat_map(|(role, count)| (0..count).map(move |index| (role, format!("{role}-{index}"))))
}

fn args(
    settings: &Settings,
    role: &str,
    join: SocketAddr,
    model: &str,
    share: Option<&GpuShare>,
) -> Vec<String> {
    let Config {
        cluster,
        model: model_config,
        log,
        otel,
        ..
    } = &settings.config;
    let mut args: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            args.extend([format!("--{flag}"), value]);
        }
    };
    add(
        "model",
        model_config
            .path
            .as_ref()
            .map(|path| path.display().to_string()),
    );
    add("role", Some(role.to_owned()));
    add("join", Some(join.to_string()));
    add("served-model-name", Some(model.to_owned()));
    add(
        "mock-timings",
        cluster.mock.then(|| cluster.mock_timings.clone()),
    );
    add("dtype", (!cluster.mock).then(|| cluster.dtype.clone()));
    add(
        "attention",
        (!cluster.mock).then(|| cluster.attention.clone()),
    );
    add(
        "device",
        share.map(|share| format!("cuda:{}", share.device)),
    );
    add(
        "gpu-memory-utilization",
        share.map(|share| format!("{:.4}", share.memory)),
    );
    add("kv-memory", cluster.kv_memory.clone());
    add(
        "max-model-len",
        model_config.max_model_len.map(|tokens| tokens.to_string()),
    );
    add(
        "max-num-seqs",
        cluster.max_num_seqs.map(|count| count.to_string()),
    );
    add(
        "log-level",
        trace::plain_level(&log.filter).map(str::to_owned),
    );
    let is_json = log.format == "json";
    add("log-format", is_json.then(|| log.format.clone()));
    add("otel", otel.endpoint.clone());
    args.extend(cluster.mock.then(|| "--mock".to_owned()));
    args.push("--exit-on-stdin-eof".to_owned());
    // The user's own last: they win over what stands before them.
    args.extend(settings.worker_args.iter().cloned());
    args.extend(cluster.worker_args.iter().cloned());
    args
}
