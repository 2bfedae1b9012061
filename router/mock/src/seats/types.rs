//! Words of the seat table: what comes in, what goes out, what a seat is.

use bytes::Bytes;
use dopd_core::{
    cost::Timings,
    step::{Stay, StepMode, StepPolicy},
    units::Micros,
};
use dopd_router::{
    wire::worker::{
        self as wire, CloseReason, KvCheck, KvScrub, Limits, LogitAdjustments, Sampling, link_frame,
    },
    workers::step,
};

use crate::model::PAGE_SIZE;

/// Facts of the worker that stay the same as long as it lives.
#[derive(Clone, Debug)]
pub struct SeatsConfig {
    /// Name of the worker, shown in grants.
    pub worker: String,
    /// Random per process start, shown in grants.
    pub incarnation: u64,
    /// Where the data link listens, shown in grants.
    pub data_address: String,
    /// Size of the pool.
    pub pages_total: u32,
    /// Open seats; one more is refused.
    pub num_seqs_max: u32,
    /// Tokens in one step, at least `num_seqs_max`.
    pub batch_tokens_max: u32,
    /// Longest prompt plus answer in tokens.
    pub model_len_max: u32,
    /// Payload that may wait in the transport of one peer: keeps a slow peer from piling up copies
    /// of pages.
    pub in_flight_bytes_max: u32,
    /// What it expects of its steps.
    pub timings: Timings,
    /// Label at start.
    pub role: wire::Role,
    /// Seed of the nonces: random per process start, so that an old grant never fits.
    pub nonce_seed: u64,
}

/// One end of a data link, named by its generation: a connection that comes back has another name,
/// so what an old one still had to say is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkId {
    /// Accepted here: a peer ships to us. The number is chosen by whoever accepts.
    In(u64),
    /// Dialled from here. The number is chosen by the seat table.
    Out(u64),
}

/// Whom a grant points to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey {
    /// Address of its data link.
    pub address: String,
    /// Name that it must answer with.
    pub worker: String,
    /// Incarnation that it must answer with.
    pub incarnation: u64,
}

/// One message of a data link.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkMessage {
    /// What.
    pub kind: link_frame::Kind,
    /// Page bytes of a write, else empty.
    pub payload: Bytes,
}

/// What a router says at the start of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Name of the session.
    pub session: u64,
    /// What `End.checksum` covers; the same at all workers of the router.
    pub check: KvCheck,
    /// When a page is zeroed before a seat gets it.
    pub scrub: KvScrub,
    /// What a step computes.
    pub step: StepPolicy,
}

impl Terms {
    /// As a Welcome tells them.
    pub fn of(welcome: &wire::Welcome) -> Self {
        Self {
            session: welcome.session,
            check: welcome.kv_check(),
            scrub: welcome.kv_scrub(),
            step: welcome
                .step_policy
                .as_ref()
                .map_or_else(fill, step::from_wire),
        }
    }

    /// A session that checks nothing.
    pub fn plain(session: u64) -> Self {
        Self {
            session,
            check: KvCheck::Off,
            scrub: KvScrub::Never,
            step: fill(),
        }
    }

    /// Shipments carry a checksum.
    pub(super) fn is_checked(&self) -> bool {
        matches!(self.check, KvCheck::Header | KvCheck::Full)
    }
}

/// Of a router that says nothing about it.
pub(super) fn fill() -> StepPolicy {
    StepPolicy {
        mode: StepMode::Fill,
        ..StepPolicy::default()
    }
}

/// What happens to the seat table.
#[derive(Clone, Debug)]
pub enum Event {
    /// A router answered our hello.
    SessionUp(Terms),
    /// Stream ended or lease over.
    SessionLost,
    /// One command of the session named.
    Command(u64, wire::Command),
    /// A peer dialled us and passed the handshake.
    Accepted(u64),
    /// A dial of ours passed the handshake.
    LinkUp(u64),
    /// A connection is gone (or a dial failed) and nothing of it can land any more.
    LinkDown(LinkId),
    /// A peer said something. Dropped if the link is not up.
    Frame(LinkId, LinkMessage),
    /// The transport took this many payload bytes of an outgoing link.
    Drained(u64, u32),
    /// A seat loses its pages to more urgent ones.
    Preempt(u32),
    /// Drain without a router (SIGTERM).
    Drain,
    /// Time passed: fences may be too old.
    Tick,
}

/// What the seat table wants done, in order. Reports are taken by `Seats::take_report`.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Connect to a peer; answered by `LinkUp` or `LinkDown` of this number.
    Dial {
        /// Name of the new link end.
        link: u64,
        /// Whom.
        peer: PeerKey,
        /// Failed tries before this one: the wait doubles with each.
        attempt: u32,
    },
    /// Say something on a link.
    Say(LinkId, LinkMessage),
    /// Close the connection. Nothing of it is accepted from now on.
    Abort(LinkId, AbortReason),
    /// The router broke the protocol: count, log, break the stream.
    Break(String),
}

/// Why a link is shut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AbortReason {
    /// A fence on it got too old: the only way to know that nothing lands any more.
    FenceTimer,
    /// The peer broke the protocol.
    Protocol(String),
}

/// Label of the worker; the greatest epoch wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// What the router calls it. The worker does not act on it.
    pub role: wire::Role,
    /// Refuse every Open.
    pub drain: bool,
    /// Greatest epoch obeyed.
    pub epoch: u64,
}

/// A request's place at this worker.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Distinguishes two lives of one slot; a later one has the greater number.
    pub life: u64,
    /// Lower goes first.
    pub priority: i32,
    /// Whose it is, for scrubbing.
    pub tenant: u64,
    /// Target per token; 0: the policy's.
    pub tpot: Micros,
    /// Its place among those that decode, while it does.
    pub stay: Option<Stay>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// As the router sent it.
    pub prompt_hash: u64,
    /// Answer tokens that the router held at Open (import).
    pub have: u32,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Bias that decides draws; penalties are ignored.
    pub adjustments: Option<LogitAdjustments>,
    /// Alternatives to tell at each position of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// When the answer ends.
    pub limits: Limits,
    /// All pages of the seat, in order of positions.
    pub pages: Vec<u32>,
    /// Prompt and answer so far, until their KV is computed; empty at an import.
    pub todo: Vec<u32>,
    /// Answer tokens made.
    pub answer: Vec<u32>,
    /// A test wants its steps to be slow.
    pub is_slow: bool,
    /// Positions whose KV is in the pages.
    pub computed: u32,
    /// Where it stands.
    pub phase: Phase,
}

/// State of a seat, as in table "Seat at a worker".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Import, ticket not shown yet.
    Reserved {
        /// The ticket.
        nonce: u64,
    },
    /// Import that a peer may write.
    Exposed {
        /// The ticket.
        nonce: u64,
        /// The only link that may write.
        link: u64,
        /// Which pages were written.
        written: Vec<bool>,
    },
    /// Takes part in steps, nothing to ship.
    Run,
    /// Has a grant, the link is not up.
    Want(Shipment),
    /// Showed the ticket.
    Begun(Shipment),
    /// Pages are being written; steps go on.
    Going(Shipment),
    /// No more steps; the last pages are being written.
    Frozen(Shipment),
    /// End was sent; only the router may release it.
    Sent(Shipment),
}

/// A source seat's side of a hand-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipment {
    /// The ticket.
    pub nonce: u64,
    /// Peer number of the seat table.
    pub peer: u64,
    /// Pages that are at the destination already, from its prefix cache; known from Go on.
    pub first: u32,
    /// Pages of the destination, these included.
    pub room: u32,
    /// Pages handed to the link, or there already.
    pub written: u32,
}

impl Phase {
    /// The seat is part of the next step.
    pub fn is_stepping(&self) -> bool {
        matches!(
            self,
            Self::Run | Self::Want(_) | Self::Begun(_) | Self::Going(_)
        )
    }

    /// An import into which nobody writes yet.
    pub fn is_reserved(&self) -> bool {
        matches!(self, Self::Reserved { .. })
    }

    /// The shipment of a source seat.
    pub fn shipment(&self) -> Option<&Shipment> {
        match self {
            Self::Want(s) | Self::Begun(s) | Self::Going(s) | Self::Frozen(s) | Self::Sent(s) => {
                Some(s)
            }
            Self::Reserved { .. } | Self::Exposed { .. } | Self::Run => None,
        }
    }
}

impl Seat {
    /// Answer tokens made.
    pub fn pos(&self) -> u32 {
        count(self.answer.len())
    }

    /// KV of everything but the last answer token is there: the seat decodes.
    pub fn is_prefilled(&self) -> bool {
        self.todo.is_empty() && self.pos() > 0
    }

    /// Token of a position, as far as it is kept: of the prompt until that is computed.
    pub fn token(&self, position: u32) -> Option<u32> {
        let told = self.todo.get(position as usize).copied();
        let made = || {
            let place = position.checked_sub(self.prompt_tokens)?;
            self.answer.get(place as usize).copied()
        };
        told.or_else(made)
    }

    /// Pages that hold computed positions.
    pub fn pages_used(&self) -> u32 {
        self.computed.div_ceil(PAGE_SIZE)
    }

    /// Pages that no step writes any more.
    pub fn pages_full(&self) -> u32 {
        self.computed / PAGE_SIZE
    }

    /// Whether the answer ends with the token just added.
    pub fn end(&self, token: u32, eos: u32, model_len_max: u32) -> Option<CloseReason> {
        let stops = (token == eos && !self.limits.ignore_eos)
            || self.limits.stop_token_ids.contains(&token);
        if stops && self.pos() >= self.limits.min_tokens {
            return Some(CloseReason::Stop);
        }
        let full = self.prompt_tokens.saturating_add(self.pos()) >= model_len_max;
        (full || self.pos() >= self.limits.max_tokens).then_some(CloseReason::Length)
    }
}

/// Length as the wire counts it; every list here is bounded by the model's length.
#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded by the model length"
)]
pub(crate) fn count(len: usize) -> u32 {
    len as u32
}
