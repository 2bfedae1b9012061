//! What settings must hold together, and what cannot be offered yet.

use std::net::IpAddr;

use super::{Config, ConfigError, Origin, Settings};

/// Reports that must fit into a lease: four missed ones make a worker suspect before its session
/// ends.
const REPORTS_PER_LEASE: u32 = 4;

/// Most local workers of one router.
const LOCAL_WORKERS_MAX: u32 = 64;

/// What the settings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `serve`: with local workers.
    Serve,
    /// `router`: without.
    Router,
}

/// Defaults that depend on other settings: `--mixed 2` alone means two mixed workers and no others.
pub(super) fn settle(settings: &mut Settings) {
    let is_default = |path: &str| *settings.origin(path) == Origin::Default;
    let only_mixed = is_default("cluster.prefill") && is_default("cluster.decode");
    if settings.config.cluster.mixed > 0 && only_mixed {
        settings.config.cluster.prefill = 0;
        settings.config.cluster.decode = 0;
    }
}

/// Refuses contradictions.
pub(super) fn check(settings: &Settings, scope: Scope) -> Result<(), ConfigError> {
    timers(settings)?;
    targets(settings)?;
    loopback(
        settings,
        "workers.host",
        settings.config.workers.host,
        "mutual TLS",
    )?;
    loopback(
        settings,
        "admin.host",
        settings.config.admin.host,
        "mutual TLS",
    )?;
    anonymous(settings)?;
    origins(settings)?;
    ports(settings)?;
    if scope == Scope::Serve {
        local_workers(settings)?;
        memory_share(settings)?;
    }
    Ok(())
}

fn memory_share(settings: &Settings) -> Result<(), ConfigError> {
    let share = settings.config.cluster.gpu_memory_utilization;
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    refuse(format!(
        "cluster.gpu_memory_utilization is {share}: it is a share of a GPU's memory, above 0 and \
         at most 1",
    ))
}

fn timers(settings: &Settings) -> Result<(), ConfigError> {
    let workers = &settings.config.workers;
    let (interval, lease) = (workers.report_interval_ms, workers.lease_ms);
    if interval.saturating_mul(REPORTS_PER_LEASE) >= lease {
        return refuse(format!(
            "workers.report_interval_ms is {interval} and workers.lease_ms is {lease}: a lease \
             must be longer than {REPORTS_PER_LEASE} report intervals",
        ));
    }
    let limits = &settings.config.limits;
    let life = limits.request_timeout_ms;
    for (name, value) in [
        ("no_worker_wait_ms", limits.no_worker_wait_ms),
        ("slow_reader_timeout_ms", limits.slow_reader_timeout_ms),
    ] {
        if value > life {
            return refuse(format!(
                "limits.{name} is {value} and limits.request_timeout_ms is {life}: it must not be \
                 longer than a request's life",
            ));
        }
    }
    Ok(())
}

/// Nobody has a target by default that they may not ask for.
fn targets(settings: &Settings) -> Result<(), ConfigError> {
    let Config {
        slo, limits, key, ..
    } = &settings.config;
    let ttft = ("limits.slo_ttft_ms_min", limits.slo_ttft_ms_min);
    let tpot = ("limits.slo_tpot_ms_min", limits.slo_tpot_ms_min);
    least(|| "slo.ttft_ms".to_owned(), slo.ttft_ms, ttft)?;
    least(|| "slo.tpot_ms".to_owned(), slo.tpot_ms, tpot)?;
    for key in key {
        let own = |name, least: Option<u64>| least.map(|least| (name, least));
        let ttft = own("its slo_ttft_ms_min", key.slo_ttft_ms_min).unwrap_or(ttft);
        let tpot = own("its slo_tpot_ms_min", key.slo_tpot_ms_min).unwrap_or(tpot);
        let of_key = |name| move || format!("{name} of key {:?}", key.name);
        least(of_key("slo_ttft_ms"), key.slo_ttft_ms, ttft)?;
        least(of_key("slo_tpot_ms"), key.slo_tpot_ms, tpot)?;
    }
    Ok(())
}

fn least(
    target: impl Fn() -> String,
    value: Option<u64>,
    (name, least): (&str, u64),
) -> Result<(), ConfigError> {
    match value.filter(|value| *value < least) {
        None => Ok(()),
        Some(value) => refuse(format!(
            "{} is {value} and {name} is {least}: a target must not be below the least that may \
             be asked for",
            target()
        )),
    }
}

fn loopback(
    settings: &Settings,
    path: &str,
    host: IpAddr,
    missing: &str,
) -> Result<(), ConfigError> {
    if host.is_loopback() {
        return Ok(());
    }
    refuse(format!(
        "{path} is {host} (from {}): listening off loopback needs {missing}, which dopd does not \
         have yet; use 127.0.0.1 and a tunnel (ssh -L)",
        settings.origin(path)
    ))
}

/// Off loopback whoever reaches the port may use the model.
fn anonymous(settings: &Settings) -> Result<(), ConfigError> {
    let Config { http, key, .. } = &settings.config;
    if http.host.is_loopback() || !key.is_empty() || http.allow_anonymous {
        return Ok(());
    }
    refuse(format!(
        "http.host is {} (from {}) and there is no API key: anyone who reaches it could use the \
         model; give one with DOPD_API_KEY or [[key]] in the settings file, or say \
         --allow-anonymous",
        http.host,
        settings.origin("http.host")
    ))
}

/// An origin that no browser sends would never match, and nobody would know why.
fn origins(settings: &Settings) -> Result<(), ConfigError> {
    let is_origin = |text: &str| {
        let rest = text
            .split_once("://")
            .filter(|(scheme, _)| !scheme.is_empty());
        rest.is_some_and(|(_, host)| {
            !host.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_graphic())
                && !host.contains(['/', '?', '#', '@', '*'])
        })
    };
    let origins = &settings.config.http.cors_origins;
    match origins.iter().find(|text| *text != "*" && !is_origin(text)) {
        None => Ok(()),
        Some(bad) => refuse(format!(
            "http.cors_origins has {bad:?} (from {}): an origin is scheme://host or \
             scheme://host:port, without a path; or \"*\"",
            settings.origin("http.cors_origins")
        )),
    }
}

fn ports(settings: &Settings) -> Result<(), ConfigError> {
    let config = &settings.config;
    let ports = [
        ("http.port", config.http.port),
        ("grpc.port", config.grpc.port),
        ("workers.port", config.workers.port),
        ("admin.port", config.admin.port),
    ];
    for (index, (name, port)) in ports.iter().enumerate() {
        let earlier = ports.iter().take(index).find(|(_, other)| other == port);
        if let Some((other, _)) = earlier.filter(|_| *port != 0) {
            return refuse(format!(
                "{other} and {name} are both {port}; each listener needs its own"
            ));
        }
    }
    Ok(())
}

fn local_workers(settings: &Settings) -> Result<(), ConfigError> {
    let cluster = &settings.config.cluster;
    let (prefill, decode, mixed) = (cluster.prefill, cluster.decode, cluster.mixed);
    let all = prefill + decode + mixed;
    if all > LOCAL_WORKERS_MAX {
        return refuse(format!(
            "{all} local workers (prefill {prefill}, decode {decode}, mixed {mixed}), the limit is \
             {LOCAL_WORKERS_MAX}"
        ));
    }
    Ok(())
}

fn refuse(message: String) -> Result<(), ConfigError> {
    Err(ConfigError::Relation(message))
}
