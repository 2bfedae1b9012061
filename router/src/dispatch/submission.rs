//! What the service hands to dispatch: one validated request.

use std::{sync::Arc, time::Instant};

use dopd_core::request::Slo;

use crate::streams::{prefix::Salt, sink::Sink};

/// A request, validated, tokenized and ready to run.
pub struct Submission {
    /// 128-bit id in hex, minted by the service; for logs of both sides.
    pub request_id: String,
    /// Token ids of the prompt, at least one.
    pub prompt: Arc<[u32]>,
    /// How tokens are drawn; `choice` is filled in per sequence by dispatch.
    pub sampling: crate::wire::worker::Sampling,
    /// When the answer ends.
    pub limits: crate::wire::worker::Limits,
    /// Changes to the logits; `None`: none.
    pub adjustments: Option<crate::wire::worker::LogitAdjustments>,
    /// Log probabilities of the prompt's tokens and of this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// W3C trace context for the workers; empty: none.
    pub traceparent: String,
    /// Who pays for it; bounded by the configuration.
    pub tenant: Arc<str>,
    /// Share of the tenant where tenants compete, at least 1.
    pub weight: u32,
    /// Lower goes first.
    pub priority: i32,
    /// Targets that somebody asked for.
    pub slo: Slo,
    /// With whom it shares what workers computed; `None`: with nobody, it is always computed.
    pub prefix_salt: Option<Salt>,
    /// When the client stops waiting.
    pub deadline: Instant,
    /// One sink per choice, at least one.
    pub sinks: Vec<Box<dyn Sink>>,
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission")
            .field("request_id", &self.request_id)
            .field("prompt_tokens", &self.prompt.len())
            .field("choices", &self.sinks.len())
            .finish_non_exhaustive()
    }
}
