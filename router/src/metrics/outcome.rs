//! What the rest of the router tells the metrics, and guards that count while they live.

use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::SloTargets;

/// How one request ended, told once by the service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestOutcome {
    /// [`super::CODE_OK`], or `Reason::row().code`.
    pub code: &'static str,
    /// Tokens of the prompt; 0 if it was refused before it was tokenized.
    pub prompt_tokens: u64,
    /// Of these, those that a worker had computed already.
    pub cached_tokens: u64,
    /// Tokens of all choices' answers.
    pub completion_tokens: u64,
    /// Tokens of its longest choice.
    pub longest_tokens: u64,
    /// Choices asked for.
    pub choices: u32,
    /// Answer tokens that a choice may have; 0 if it was refused before that was known.
    pub limit_tokens: u32,
    /// Its targets; none: the configured ones.
    pub targets: SloTargets,
    /// Whether a worker had it.
    pub was_placed: bool,
    /// From arrival to the first token, if there was one.
    pub ttft: Option<Duration>,
    /// Mean time between tokens after the first, if there were two.
    pub tpot: Option<Duration>,
    /// From arrival to the end.
    pub duration: Duration,
    /// Where the time went.
    pub parts: Parts,
}

/// Parts of a request's life, one after another; `None`: it did not come to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Arrival to the first place at a worker.
    pub queue: Option<Duration>,
    /// To the first token.
    pub prefill: Option<Duration>,
    /// To the last switch to a decode worker.
    pub transfer: Option<Duration>,
    /// To the last token.
    pub decode: Option<Duration>,
}

/// How one choice ended, in the words of vLLM's `finished_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceEnd {
    /// End of sequence, stop token or stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The client left, or read too slowly.
    Abort,
    /// The request failed.
    Error,
}

impl SequenceEnd {
    pub(super) const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// Its label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// Why the session of a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The worker ended its stream, as it does when it is told to stop.
    Left,
    /// A new session of the same worker took its place.
    Replaced,
    /// Its stream broke: the process died, or the network did.
    Stream,
    /// It was silent for a whole lease.
    Silent,
    /// Its step did not end.
    Stuck,
    /// It broke the protocol.
    Protocol,
}

impl SessionEnd {
    pub(super) const ALL: [Self; 6] = [
        Self::Left,
        Self::Replaced,
        Self::Stream,
        Self::Silent,
        Self::Stuck,
        Self::Protocol,
    ];

    /// Its label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Replaced => "replaced",
            Self::Stream => "stream",
            Self::Silent => "silent",
            Self::Stuck => "stuck",
            Self::Protocol => "protocol",
        }
    }
}

/// An open connection; dropped when it closes.
#[derive(Debug)]
#[must_use = "the connection counts as closed when this is dropped"]
pub struct Connection(Gauge);

impl Connection {
    pub(super) fn new(open: Gauge) -> Self {
        open.inc();
        Self(open)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
