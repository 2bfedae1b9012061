//! Makers of facts and events, shared by the tests of the brain.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "only tests call this; the lint knows test functions only"
)]

pub(crate) mod fleet;
pub(crate) mod line;
pub(crate) mod naive;
pub(crate) mod policy;
pub(crate) mod scene;
pub(crate) mod worker;

use dopd_core::{
    brain::BrainConfig,
    cost::Timings,
    event::{CloseReason, ClosedSeat, Event, StepReport},
    fleet::{Role, WorkerFacts},
    ids::{RequestId, SequenceId, SessionId, SlotId},
    policy::PolicyConfig,
    request::RequestFacts,
    units::{Micros, Pages, Tokens},
};
use proptest::test_runner::Config;

/// So many cases a property; `PROPTEST_CASES` goes before it: a night of them finds what the few
/// of a quick run do not.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    }
}

/// Tokens per page in all tests: small, so that few tokens cross a page.
pub(crate) const PAGE_SIZE: u32 = 4;

/// Far enough that no test reaches it by accident.
pub(crate) const NEVER: Micros = Micros::from_millis(1_000_000_000);

/// Bounds and budgets as they are, none of the policy's rules: for tests of everything else.
pub(crate) fn plain() -> BrainConfig {
    BrainConfig {
        policy: PolicyConfig::plain(),
        handoff_meet: Micros(0),
        ..BrainConfig::default()
    }
}

pub(crate) fn worker(role: Role, pages: u32) -> WorkerFacts {
    WorkerFacts {
        name: format!("{role:?}").to_lowercase(),
        incarnation: 0,
        role,
        page_size: PAGE_SIZE,
        page_bytes: 1_000,
        pages_total: Pages(pages),
        num_seqs_max: 8,
        batch_tokens_max: Tokens(16),
        model_len_max: Tokens(256),
        timings: Timings::instant(),
    }
}

pub(crate) fn joined(session: u64, worker: WorkerFacts) -> Event {
    Event::WorkerJoined {
        session: SessionId(session),
        worker: Box::new(worker),
    }
}

pub(crate) fn request(id: u64, prompt: u32, max_tokens: u32) -> RequestFacts {
    RequestFacts {
        deadline: NEVER,
        ..RequestFacts::of(RequestId(id), Tokens(prompt), Tokens(max_tokens))
    }
}

pub(crate) fn sequence(request: u64, choice: u8) -> SequenceId {
    SequenceId {
        request: RequestId(request),
        choice,
    }
}

pub(crate) fn report(session: u64, role: Role) -> StepReport {
    StepReport::new(SessionId(session), role)
}

pub(crate) fn closed(slot: u32, why: CloseReason) -> ClosedSeat {
    ClosedSeat {
        slot: SlotId(slot),
        why,
        retry_after: Micros(0),
    }
}

pub(crate) fn said(report: StepReport) -> Event {
    Event::StepReported(Box::new(report))
}
