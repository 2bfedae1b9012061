//! Attached workers: the gRPC service that they dial, one link per worker stream.
//!
//! Called by `main` once per front thread; calls down into `streams` only.
//!
//! | file | what |
//! |---|---|
//! | `serve`, `service` | connections, join token |
//! | `session`, `attached` | one attachment from hello to its end |
//! | `health`, `lease`, `watchdog` | silence; steps that do not end |
//! | `hello`, `registry` | who may join, who is there |
//! | `link`, `columns`, `report` | slots; what a report does; whether it is well formed |
//! | `prompt` | log probabilities of prompts |
//! | `outgoing` | commands, merged per wake |
//! | `sim` | a way in for the simulation |
mod attached;
mod columns;
mod health;
mod hello;
mod lease;
mod link;
mod links;
mod outgoing;
mod prompt;
mod registry;
mod report;
mod serve;
mod service;
mod session;
#[doc(hidden)]
pub mod sim;
pub mod step;
mod watchdog;

pub use serve::serve;

use std::{fmt, sync::Arc};

use dopd_core::step::StepPolicy;

use crate::{
    config::records::WorkersConfig,
    error::{Error, Reason},
    metrics::Metrics,
};

/// What workers must show to join.
#[derive(Clone)]
pub struct AttachConfig {
    /// Listener, lease and bounds.
    pub workers: WorkersConfig,
    /// The token every worker must send as `authorization: Bearer TOKEN`; not empty.
    pub join_token: String,
    /// Name of the served model, for messages.
    pub model_name: String,
    /// Hash of the model that the router has loaded; `None`: the first worker decides.
    pub model_hash: Option<[u8; 32]>,
    /// Size of the router's vocabulary; `None`: the first worker decides.
    pub vocab_size: Option<u32>,
    /// How workers choose their steps.
    pub step: StepPolicy,
    /// Whether workers keep pages of ended sequences for others with the same beginning.
    pub prefix_cache: bool,
}

impl fmt::Debug for AttachConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the join token: whoever has it can join.
        f.debug_struct("AttachConfig")
            .field("workers", &self.workers)
            .field("model_name", &self.model_name)
            .finish_non_exhaustive()
    }
}

/// What all front threads share about attached workers: the configuration and who is there.
#[derive(Debug)]
pub struct Attachments {
    config: AttachConfig,
    metrics: Metrics,
    registry: registry::Registry,
    /// The router's name in each Welcome: random, so that a restart is told apart.
    router: String,
}

impl Attachments {
    /// Nobody attached yet.
    pub fn new(config: AttachConfig, metrics: Metrics) -> Result<Arc<Self>, Error> {
        let random = getrandom::u32().map_err(|error| {
            let message = format!("the system gives no random numbers: {error}");
            Error::new(Reason::Internal, message)
        })?;
        Ok(Arc::new(Self {
            config,
            metrics,
            registry: registry::Registry::new(random),
            router: format!("router-{random:08x}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_token_is_not_shown() {
        let config = AttachConfig {
            workers: WorkersConfig::default(),
            join_token: "tell-nobody".to_owned(),
            model_name: "mock".to_owned(),
            model_hash: None,
            vocab_size: None,
            step: StepPolicy::default(),
            prefix_cache: true,
        };
        let attachments = Attachments::new(config, Metrics::new("mock")).unwrap();
        assert!(!format!("{attachments:?}").contains("tell-nobody"));
    }
}
