//! Workers with the step times of a GPU, and short words for what policies decide about them.

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BrainConfig},
    cost::Timings,
    event::{CloseReason, Event, StepReport},
    fleet::{Role, WorkerFacts},
    ids::SlotId,
    policy::{PolicyConfig, Reserve},
    units::{Micros, Pages, Tokens},
};

use super::{closed, joined, report, request, said, worker};

/// An 8-billion-parameter model on one GPU, with this many tokens of KV.
pub(crate) fn gpu(role: Role, kv_tokens: u32) -> WorkerFacts {
    WorkerFacts {
        page_size: 16,
        page_bytes: 16 * 131_072,
        pages_total: Pages(kv_tokens / 16),
        num_seqs_max: 256,
        batch_tokens_max: Tokens(8_192),
        model_len_max: Tokens(131_072),
        timings: Timings::h100_8b(),
        ..worker(role, 1)
    }
}

/// The default policy with whole reservation, so that pages are not the subject.
pub(crate) fn policy() -> PolicyConfig {
    PolicyConfig {
        reserve: Reserve::MaxTokens,
        ..PolicyConfig::default()
    }
}

/// Sessions are numbered from 1 in the order given.
pub(crate) fn fleet(policy: PolicyConfig, workers: &[WorkerFacts]) -> Brain {
    let mut brain = Brain::new(BrainConfig {
        policy,
        ..BrainConfig::default()
    });
    for (session, facts) in (1..).zip(workers) {
        brain.handle(Micros(0), joined(session, facts.clone()));
    }
    brain
}

/// What was opened: request, session, kind.
pub(crate) fn opens(actions: &[Action]) -> Vec<(u64, u64, OpenKind)> {
    let open = |action: &Action| match *action {
        Action::Open {
            seat,
            kind,
            sequence,
            ..
        } => Some((sequence.request.0, seat.session.0, kind)),
        _ => None,
    };
    actions.iter().filter_map(open).collect()
}

/// Sessions that compute prompts from now on, with their requests.
pub(crate) fn computes(actions: &[Action]) -> Vec<(u64, u64)> {
    let all = opens(actions).into_iter();
    all.filter(|&(_, _, kind)| kind == OpenKind::Compute)
        .map(|(request, session, _)| (request, session))
        .collect()
}

pub(crate) fn arrive(brain: &mut Brain, now: u64, id: u64, prompt: u32) -> Vec<Action> {
    let facts = request(id, prompt, 100);
    brain.handle(Micros(now), Event::RequestArrived(facts))
}

pub(crate) fn wake(brain: &mut Brain, now: u64) -> Vec<Action> {
    brain.handle(Micros(now), Event::Woke)
}

/// A step ended: of these seats with a token each, of those seats for good.
pub(crate) fn step(session: u64, role: Role, tokens: &[u32], ended: &[u32]) -> StepReport {
    StepReport {
        tokens: tokens
            .iter()
            .map(|&slot| (SlotId(slot), Tokens(1)))
            .collect(),
        closed: ended
            .iter()
            .map(|&slot| closed(slot, CloseReason::Stop))
            .collect(),
        ..report(session, role)
    }
}

pub(crate) fn tell(brain: &mut Brain, now: u64, report: StepReport) -> Vec<Action> {
    brain.handle(Micros(now), said(report))
}
