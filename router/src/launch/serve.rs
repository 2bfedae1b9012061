//! `serve` and `router`: everything is put up in order, watched, and taken down in order.

use std::{sync::Arc, time::Duration, time::Instant};

use dopd_core::{policy::PolicyConfig, step::StepPolicy};
use tokio::{runtime::Runtime, task::LocalSet};

use super::{
    Launch,
    cli::ServePlan,
    console::Failure,
    fronts::{self, Fronts, Served},
    listeners::Listeners,
    loading::Loading,
    model,
    policy::policy,
    token::JoinToken,
    watch::{Site, Watch},
    workers as local,
};
use crate::{
    admin::Admin,
    auth::Gate,
    config::{self, Config, Scope},
    dispatch::{BrainThread, Dispatch, DispatchConfig},
    metrics::{Metrics, MetricsConfig, SloTargets},
    service::Service,
    tokens::ServedModel,
    trace,
    workers::{AttachConfig, Attachments},
};

/// Time for the scheduler to end; it does so at once unless a front thread hangs.
const BRAIN_END_LIMIT: Duration = Duration::from_millis(300);

/// Runs until a signal or a failure; returns the exit code.
pub(super) fn run(launch: &Launch, plan: &ServePlan) -> Result<i32, Failure> {
    let started = Instant::now();
    let mut settings = config::load(&plan.sources, plan.scope)?;
    trace::init(&settings, plan.sources.is_set("NO_COLOR"))?;
    settings.log();
    model::resolve(&mut settings.config, &launch.known_models, plan.scope)?;
    let config = &settings.config;
    let listeners = Listeners::bind(config)?;
    let addresses = listeners.addresses();
    let token = JoinToken::prepare(config.workers.join_token_file.as_deref())?;
    let loading = Arc::new(Loading::new(&settings));
    let local = || local::supervisor(launch, &settings, &plan.sources, &token, &loading);
    let supervisor = (plan.scope == Scope::Serve).then(local).transpose()?;
    let model = Arc::new(model::load(config)?);
    if let Some(endpoint) = &config.otel.endpoint {
        trace::start(endpoint, &model.name)?;
    }
    let metrics = metrics(config, &model);
    let runtime = runtime()?;
    let threads = fronts::count(config.http.threads);
    let policy = policy(config).map_err(Failure::new)?;
    let step = policy.step;
    let (dispatch, brain) = dispatch(config, policy, threads)?;
    let served = Served {
        attachments: attachments(config, step, &token, &model, &metrics)?,
        service: Service::new(
            Arc::clone(&model),
            config.limits.clone(),
            config.slo.clone(),
            dispatch.clone(),
            metrics.clone(),
        ),
        dispatch: dispatch.clone(),
        gate: Arc::new(Gate::new(&config.key)),
        http: config.http.clone(),
        grpc: config.grpc.clone(),
    };
    let site = Site {
        shares: local::shares(launch, plan.scope, config),
        settings: &settings,
        scope: plan.scope,
        ready_file: plan.ready_file.as_deref(),
        token_file: &token.file,
        addresses,
        dispatch: &dispatch,
        model: &model.name,
        loading: &loading,
    };
    let admin = Admin {
        dispatch: dispatch.clone(),
        metrics: metrics.clone(),
        model: model.name.clone(),
        started,
    };
    let outcome = Fronts::start(threads, listeners.fronts, &served).and_then(|mut fronts| {
        let watch = Watch {
            site,
            fronts: &mut fronts,
            supervisor,
            metrics: &metrics,
        };
        let outcome = LocalSet::new().block_on(&runtime, watch.run(admin, &listeners.admin));
        dispatch.shutdown();
        outcome
    });
    dispatch.shutdown();
    let outcome = (brain.join_within(BRAIN_END_LIMIT).map_err(Failure::new)).and(outcome);
    trace::shutdown();
    outcome
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::new(format!("cannot start a runtime: {error}")))
}

fn metrics(config: &Config, model: &ServedModel) -> Metrics {
    let targets = SloTargets {
        ttft: config.slo.ttft_ms.map(Duration::from_millis),
        tpot: config.slo.tpot_ms.map(Duration::from_millis),
    };
    Metrics::with(&MetricsConfig {
        model: model.name.clone(),
        targets,
        vllm: config.admin.metrics_compat == "vllm",
    })
}

fn dispatch(
    config: &Config,
    policy: PolicyConfig,
    front_threads: usize,
) -> Result<(Dispatch, BrainThread), Failure> {
    let started = Dispatch::start(DispatchConfig {
        explain_decisions_max: config.policy.explain_decisions_max,
        limits: config.limits.clone(),
        policy,
        prefix_cache: config.policy.prefix_cache,
        front_threads,
        record: config.log.record.clone(),
        record_bytes_max: config.log.record_bytes_max,
    });
    let (dispatch, brain) = started.map_err(Failure::new)?;
    dispatch.expect_tokens(Duration::from_millis(config.workers.canary_interval_ms));
    Ok((dispatch, brain))
}

fn attachments(
    config: &Config,
    step: StepPolicy,
    token: &JoinToken,
    model: &ServedModel,
    metrics: &Metrics,
) -> Result<Arc<Attachments>, Failure> {
    let attach = AttachConfig {
        workers: config.workers.clone(),
        join_token: token.token.clone(),
        model_name: model.name.clone(),
        model_hash: model.model_hash,
        vocab_size: Some(model.vocab_size),
        step,
        prefix_cache: config.policy.prefix_cache,
    };
    Attachments::new(attach, metrics.clone()).map_err(Failure::new)
}
