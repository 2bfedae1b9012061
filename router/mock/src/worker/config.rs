//! What a mock worker is told, and what it tells of itself.

use dopd_router::wire::worker::{Hello, Role};

use crate::{faults::Fault, link::Identity, model, seats::SeatsConfig, step::Pace};

/// Payload that may wait for a peer: a long prompt's pages of this small model.
pub(crate) const IN_FLIGHT_BYTES_MAX: u32 = 1 << 20;

/// What a mock worker is told.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Name, unique in the fleet.
    pub name: String,
    /// Label at start.
    pub role: Role,
    /// The router's worker listener, `host:port`.
    pub join: String,
    /// Shared secret; empty: none.
    pub join_token: String,
    /// Address that the data link listens on; port 0.
    pub data_host: String,
    /// Name of the model in the hello.
    pub model: String,
    /// Pages of the pool.
    pub pages: u32,
    /// Most sequences in a step.
    pub num_seqs_max: u32,
    /// Most tokens in a step.
    pub batch_tokens_max: u32,
    /// Longest prompt plus answer.
    pub model_len_max: u32,
    /// Step times.
    pub pace: Pace,
    /// What is to go wrong; for tests.
    pub faults: Vec<Fault>,
}

/// Why a worker ended other than by wish.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The router will never take it.
    #[error("the router refused {worker}: {why}")]
    Refused {
        /// Name of the worker.
        worker: String,
        /// In the router's words.
        why: String,
    },
    /// The data link cannot listen, or the system has no entropy.
    #[error("{worker} cannot start: {why}")]
    Start {
        /// Name of the worker.
        worker: String,
        /// Cause.
        why: String,
    },
}

pub(super) fn seats_config(
    config: &WorkerConfig,
    identity: &Identity,
    data_address: &str,
    nonce_seed: u64,
) -> SeatsConfig {
    SeatsConfig {
        worker: config.name.clone(),
        incarnation: identity.incarnation,
        data_address: data_address.to_owned(),
        pages_total: config.pages,
        num_seqs_max: config.num_seqs_max,
        batch_tokens_max: config.batch_tokens_max,
        model_len_max: config.model_len_max,
        in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
        timings: config.pace.timings().clone(),
        role: config.role,
        nonce_seed,
    }
}

pub(super) fn hello(config: &WorkerConfig, incarnation: u64, data_address: String) -> Hello {
    Hello {
        worker: config.name.clone(),
        incarnation,
        role: config.role.into(),
        geometry: Some(model::geometry()),
        pages_total: config.pages,
        max_num_seqs: config.num_seqs_max,
        max_batch_tokens: config.batch_tokens_max,
        max_model_len: config.model_len_max,
        vocab_size: model::VOCAB_SIZE,
        model: config.model.clone(),
        device: "mock".to_owned(),
        data_address,
        transports: vec!["tcp".to_owned()],
        pid: std::process::id(),
        timings_json: config.pace.timings_json(),
        role_epoch: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
