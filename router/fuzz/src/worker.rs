//! The stream of a worker: whatever it says, its session goes on or ends with an error that names
//! what was wrong, and no sink gets what it must not.

use std::{cell::Cell, rc::Rc, sync::Arc};

use dopd_core::{
    action::OpenKind,
    brain::BrainConfig,
    ids::{RequestId, SequenceId, SlotId},
    units::Pages,
};
use dopd_router::{
    config::records::{LimitsConfig, WorkersConfig},
    dispatch::sim::Sim,
    error::Error,
    metrics::Metrics,
    streams::{
        front::Front,
        messages::{FrontMessage, Order, SeatOrder},
        request::RequestShared,
        sink::{FinishReason, Flow, Sink, TokenChunk, TokenLogprobs},
    },
    wire::worker::{
        AttachRequest, Hello, KvGeometry, Limits, Role, Sampling, attach_request::Kind,
    },
    workers::{AttachConfig, Attachments, sim::Attachment},
};
use dopd_sync::Count;
use prost::Message as _;

/// Size of the vocabulary, most tokens of an answer, tokens of a prompt, most alternatives.
const VOCAB: u32 = 100;
const TOKENS_MAX: usize = 8;
const PROMPT: u32 = 6;
const TOP_MAX: u32 = 2;

/// Open seats: each third one imports, each second one is asked for log probabilities.
const SEATS: u32 = 6;

/// Words of which each error has one: a column, or a part of the message.
const NAMES: [&str; 14] = [
    "opened_slots",
    "arrived_slots",
    "arrived_tail_lens",
    "token_slots",
    "token_counts",
    "closed_slots",
    "closed_reasons",
    "closed_retry_ms",
    "closed_messages",
    "logprobs",
    "pages",
    "role",
    "hello",
    "message",
];

/// Checks what it is told.
struct Checked {
    tokens: usize,
    has_logprobs: bool,
    is_over: bool,
}

impl Sink for Checked {
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow {
        self.tokens += chunk.tokens.len();
        assert!(!self.is_over && self.tokens <= TOKENS_MAX);
        assert!(chunk.tokens.iter().all(|token| *token < VOCAB));
        let entries = if self.has_logprobs {
            chunk.tokens.len()
        } else {
            0
        };
        assert_eq!(chunk.logprobs.len(), entries);
        chunk.logprobs.iter().for_each(check);
        Flow::Continue
    }

    fn prompt_logprobs(&mut self, start: u32, logprobs: &[TokenLogprobs]) {
        assert!(start >= 1 && start as usize + logprobs.len() <= PROMPT as usize);
        assert!(logprobs.iter().all(|e| e.top.len() <= TOP_MAX as usize));
        logprobs.iter().for_each(check);
    }

    fn finish(&mut self, _: FinishReason) {
        assert!(!std::mem::replace(&mut self.is_over, true));
    }

    fn fail(&mut self, _: Error) {
        assert!(!std::mem::replace(&mut self.is_over, true));
    }
}

fn check(entry: &TokenLogprobs) {
    assert!(entry.chosen.is_finite());
    let mut top = entry.top.iter();
    assert!(top.all(|(token, value)| *token < VOCAB && value.is_finite()));
}

/// Messages, each with its length in two bytes before it. Session 1 is an old one; any other is
/// taken for the one that is there.
pub(crate) fn run(mut data: &[u8]) {
    let mut sim = Sim::new(BrainConfig::default(), LimitsConfig::default(), 1);
    let front = Front::new(0, sim.queues());
    let attachments = attachments();
    let mut attachment = attach(&attachments, &front);
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (message, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        data = rest;
        let Ok(AttachRequest { kind: Some(kind) }) = AttachRequest::decode(message) else {
            continue;
        };
        let kind = match kind {
            Kind::Hello(hello) => {
                let name = hello.worker.clone();
                if let Err(why) = Attachment::begin(&attachments, &front, hello) {
                    assert!(why.contains("worker"), "{why} of {name:?}");
                }
                continue;
            }
            Kind::Report(mut report) => {
                if report.session != 1 {
                    report.session = attachment.session().0;
                }
                Kind::Report(report)
            }
        };
        if let Err(why) = attachment.message(kind) {
            assert!(NAMES.iter().any(|name| why.contains(name)), "{why}");
            drop(attachment);
            attachment = attach(&attachments, &front);
        }
        assert!(attachment.seats() <= 2 * SEATS as usize);
        while sim.next_input().is_some() {}
    }
    // A Close for each seat at most, in few messages.
    let waiting = std::iter::from_fn(|| attachment.next()).count();
    assert!(waiting <= 2 + SEATS as usize, "{waiting} messages wait");
}

fn attachments() -> Arc<Attachments> {
    let config = AttachConfig {
        workers: WorkersConfig::default(),
        join_token: "x".to_owned(),
        model_name: "m".to_owned(),
        model_hash: None,
        vocab_size: None,
        step: dopd_core::step::StepPolicy::default(),
        prefix_cache: true,
    };
    Attachments::seeded(config, Metrics::new("m"), 1)
}

/// A worker with open seats, each with a stream.
fn attach(attachments: &Arc<Attachments>, front: &Rc<Front>) -> Attachment {
    thread_local! {
        /// Requests of all attachments differ.
        static NEXT: Cell<u64> = const { Cell::new(1) };
    }
    let attachment = Attachment::begin(attachments, front, hello());
    assert!(attachment.is_ok(), "the hello fits");
    let attachment = attachment.unwrap_or_else(|_| unreachable!("asserted"));
    for slot in 0..SEATS {
        let id = RequestId(NEXT.with(|next| next.replace(next.get() + 1)));
        let request = request(id, slot.is_multiple_of(2));
        let sink = Checked {
            tokens: 0,
            has_logprobs: request.sampling.top_logprobs.is_some(),
            is_over: false,
        };
        let sequence = SequenceId {
            request: id,
            choice: 0,
        };
        front
            .streams
            .insert(Arc::new(request), sequence, Box::new(sink));
        let kind = if slot % 3 == 2 {
            OpenKind::Import
        } else {
            OpenKind::Compute
        };
        front.handle(FrontMessage::Seat(SeatOrder {
            sequence,
            session: attachment.session(),
            slot: SlotId(slot),
            home: 0,
            worker: "w".into(),
            order: Order::Open {
                pages: Pages(1),
                kind,
            },
        }));
    }
    // What the brain would have told the worker so far.
    while attachment.next().is_some() {}
    attachment
}

fn request(id: RequestId, with_logprobs: bool) -> RequestShared {
    RequestShared {
        id,
        label: "r".to_owned(),
        prompt: (0..PROMPT).collect(),
        prompt_hash: 0,
        sampling: Sampling {
            top_logprobs: with_logprobs.then_some(TOP_MAX),
            ..Sampling::default()
        },
        limits: Limits {
            max_tokens: u32::try_from(TOKENS_MAX).unwrap_or(u32::MAX),
            ..Limits::default()
        },
        adjustments: None,
        prompt_logprobs: with_logprobs.then_some(TOP_MAX),
        traceparent: String::new(),
        tenant: 0,
        slo_tpot_us: 0,
        prefix: None,
        choices: 1,
        priority: 0,
        active: Count::default().enter(),
    }
}

/// A hello that fits.
fn hello() -> Hello {
    Hello {
        worker: "w".to_owned(),
        incarnation: 1,
        role: Role::Mixed.into(),
        geometry: Some(KvGeometry {
            model_hash: vec![7; 32],
            dtype: "mock".to_owned(),
            page_size: 16,
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 1,
            layout: "page_major_nhd".to_owned(),
            tensor_parallel: 1,
            page_bytes: 128,
        }),
        pages_total: 64,
        max_num_seqs: 8,
        max_batch_tokens: 64,
        max_model_len: 64,
        vocab_size: VOCAB,
        model: "m".to_owned(),
        device: "mock".to_owned(),
        data_address: "127.0.0.1:1".to_owned(),
        transports: vec!["tcp".to_owned()],
        pid: 1,
        timings_json: String::new(),
        role_epoch: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
