//! Attached workers: the gRPC service that they dial, one link per worker stream.
//!
//! Called by `main` once per front thread; calls down into `streams` only.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{config::records::WorkersConfig, error::Error, metrics::Metrics};

/// What workers must show to join.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// Listener, lease and bounds.
    pub workers: WorkersConfig,
    /// The token every worker must send as `authorization: Bearer TOKEN`.
    pub join_token: String,
    /// Name of the served model, for messages.
    pub model_name: String,
    /// Hash of the model that the router has loaded; `None`: the first worker decides.
    pub model_hash: Option<[u8; 32]>,
    /// Size of the router's vocabulary; `None`: the first worker decides.
    pub vocab_size: Option<u32>,
}

/// What all front threads share about attached workers: the configuration and who is there.
#[derive(Debug)]
pub struct Attachments {
    config: AttachConfig,
    metrics: Metrics,
}

impl Attachments {
    /// Nobody attached yet.
    pub fn new(config: AttachConfig, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { config, metrics })
    }
}

/// Serves workers on `listener` until `stop`; run it once on each front thread (`spawn_local`, after
/// [`crate::dispatch::Dispatch::front`] was called there) with a clone of the listening socket.
pub async fn serve(
    _listener: TcpListener,
    attachments: Arc<Attachments>,
    stop: CancellationToken,
) -> Result<(), Error> {
    tracing::debug!(model = attachments.config.model_name, "waiting for workers");
    stop.cancelled().await;
    Ok(())
}
