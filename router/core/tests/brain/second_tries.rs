//! Who stays where its prompt was computed, as a hand-off failed or its place was refused, moves on
//! later; so often and no more.

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BrainConfig},
    event::{CloseReason, StepReport},
    fleet::Role::{Decode, Prefill},
    ids::SlotId,
    units::Micros,
};

use crate::support::{
    closed,
    policy::{arrive, fleet, gpu, opens, policy, step, tell, wake},
    report,
};

/// Sessions of the imports that were opened.
fn imports(actions: &[Action]) -> Vec<u64> {
    let all = opens(actions).into_iter();
    all.filter(|&(_, _, kind)| kind == OpenKind::Import)
        .map(|(_, session, _)| session)
        .collect()
}

fn pair() -> Brain {
    fleet(policy(), &[gpu(Prefill, 40_000), gpu(Decode, 40_000)])
}

fn said(brain: &mut Brain, now: u64, opened: &[u32], why: Option<CloseReason>) {
    let ended = why.map(|why| closed(0, why));
    let told = StepReport {
        opened: opened.iter().copied().map(SlotId).collect(),
        closed: ended.into_iter().collect(),
        ..report(2, Decode)
    };
    assert!(
        imports(&tell(brain, now, told)).is_empty(),
        "not before a token"
    );
}

#[test]
fn a_hand_off_that_failed_is_tried_again_with_the_next_token() {
    let mut brain = pair();
    assert_eq!(imports(&arrive(&mut brain, 0, 1, 1_000)), [2]);
    said(&mut brain, 1, &[0], None);
    said(&mut brain, 2, &[], Some(CloseReason::Lost));
    let moved = tell(&mut brain, 3, step(1, Prefill, &[0], &[]));
    assert_eq!(imports(&moved), [2]);
}

#[test]
fn tries_are_bounded() {
    let mut brain = pair();
    let mut opened = imports(&arrive(&mut brain, 0, 1, 1_000)).len();
    let mut now = 0;
    for _ in 0..20 {
        // Refusals make a worker wait, failures a pair of workers.
        now += 60_000_000;
        said(&mut brain, now, &[0], None);
        said(&mut brain, now + 1, &[], Some(CloseReason::Lost));
        now += 60_000_000;
        wake(&mut brain, now);
        opened += imports(&tell(&mut brain, now, step(1, Prefill, &[0], &[]))).len();
    }
    let tries = usize::try_from(BrainConfig::default().moves_max).unwrap_or_default();
    assert_eq!(opened, 1 + tries);
    assert!(brain.next_wake().is_none_or(|at| at > Micros(now)));
}
