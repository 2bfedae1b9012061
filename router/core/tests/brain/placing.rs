//! Where sequences go: the policy of this version, rule by rule.

use dopd_core::{
    action::{Action, OpenKind},
    brain::Brain,
    event::{CloseReason, Event, StepReport, Suspicion},
    fleet::Role::{self, Decode, Mixed, Prefill},
    ids::{SessionId, SlotId},
    units::{Micros, Tokens},
};

use crate::support::{closed, joined, plain, report, request, said, worker};

/// Sessions are numbered from 1 in the order given.
fn fleet(workers: &[(Role, u32)]) -> Brain {
    let mut brain = Brain::new(plain());
    for (session, &(role, pages)) in (1..).zip(workers) {
        brain.handle(Micros(0), joined(session, worker(role, pages)));
    }
    brain
}

/// Sessions and kinds of the seats that a request of that length opens at once.
fn opens(brain: &mut Brain, id: u64, prompt: u32, max_tokens: u32) -> Vec<(u64, OpenKind)> {
    shown(&brain.handle(
        Micros(id),
        Event::RequestArrived(request(id, prompt, max_tokens)),
    ))
}

fn shown(actions: &[Action]) -> Vec<(u64, OpenKind)> {
    let open = |action: &Action| match *action {
        Action::Open { seat, kind, .. } => Some((seat.session.0, kind)),
        _ => None,
    };
    actions.iter().filter_map(open).collect()
}

const COMPUTE: OpenKind = OpenKind::Compute;
const IMPORT: OpenKind = OpenKind::Import;

#[test]
fn place_at_a_decode_worker_is_reserved_before_the_prompt_starts() {
    let mut brain = fleet(&[(Prefill, 60), (Decode, 40)]);
    assert_eq!(opens(&mut brain, 1, 8, 8), [(2, IMPORT)]);
    let opened = said(StepReport {
        opened: vec![SlotId(0)],
        ..report(2, Decode)
    });
    assert_eq!(shown(&brain.handle(Micros(2), opened)), [(1, COMPUTE)]);
}

#[test]
fn decode_worker_with_most_free_pages_is_chosen() {
    let mut brain = fleet(&[(Prefill, 99), (Decode, 20), (Decode, 30), (Decode, 25)]);
    let chosen: Vec<u64> = (1..=4)
        .map(|id| opens(&mut brain, id, 4, 20)[0].0)
        .collect();
    // Six pages each: 20 30 25 -> 20 24 25 -> 20 24 19 -> 20 18 19.
    assert_eq!(chosen, [3, 4, 3, 2]);
}

#[test]
fn least_loaded_worker_computes_the_prompt() {
    let mut brain = fleet(&[(Mixed, 60), (Mixed, 60), (Prefill, 60)]);
    assert_eq!(opens(&mut brain, 1, 10, 2), [(1, COMPUTE)]);
    assert_eq!(opens(&mut brain, 2, 4, 2), [(2, COMPUTE)]);
    assert_eq!(opens(&mut brain, 3, 12, 2), [(3, COMPUTE)]);
    assert_eq!(opens(&mut brain, 4, 4, 2), [(2, COMPUTE)]);
    assert_eq!(opens(&mut brain, 5, 4, 2), [(2, COMPUTE)]);
    assert_eq!(opens(&mut brain, 6, 4, 2), [(1, COMPUTE)]);
}

#[test]
fn no_more_than_one_batch_is_bound_ahead() {
    // 16 tokens a batch: bound while at most 16 are pending.
    let mut brain = fleet(&[(Mixed, 200)]);
    assert_eq!(opens(&mut brain, 1, 16, 2), [(1, COMPUTE)]);
    assert_eq!(opens(&mut brain, 2, 16, 2), [(1, COMPUTE)]);
    assert_eq!(opens(&mut brain, 3, 16, 2), []);
    let first = said(StepReport {
        tokens: vec![(SlotId(0), Tokens(1))],
        ..report(1, Mixed)
    });
    let mut busy = report(1, Mixed);
    busy.load.prefill_tokens_queued = Tokens(16);
    assert_eq!(shown(&brain.handle(Micros(3), first)), [(1, COMPUTE)]);
    assert_eq!(shown(&brain.handle(Micros(4), said(busy))), []);
}

#[test]
fn progress_within_a_long_prompt_counts() {
    let mut brain = fleet(&[(Mixed, 200)]);
    assert_eq!(opens(&mut brain, 1, 100, 2), [(1, COMPUTE)]);
    assert_eq!(opens(&mut brain, 2, 8, 2), []);
    let queued = |tokens| {
        let mut report = report(1, Mixed);
        report.load.prefill_tokens_queued = Tokens(tokens);
        said(report)
    };
    // The first two reports may be older than the open.
    for tokens in [0, 90, 17] {
        assert_eq!(
            shown(&brain.handle(Micros(3), queued(tokens))),
            [],
            "{tokens}"
        );
    }
    assert_eq!(shown(&brain.handle(Micros(4), queued(16))), [(1, COMPUTE)]);
}

#[test]
fn roles_are_labels() {
    // Nobody is labelled for prompts: a decode worker takes them whole.
    assert_eq!(
        opens(&mut fleet(&[(Decode, 40), (Decode, 40)]), 1, 8, 8),
        [(1, COMPUTE)]
    );
    // Nobody is labelled decode: the prefill worker goes on.
    assert_eq!(
        opens(&mut fleet(&[(Prefill, 40), (Mixed, 40)]), 1, 8, 8),
        [(1, COMPUTE)]
    );
    // A mixed worker keeps, though a decode worker has room.
    assert_eq!(
        opens(&mut fleet(&[(Mixed, 40), (Decode, 40)]), 1, 8, 8),
        [(1, COMPUTE)]
    );
    // A relabelled worker is used by its new label at once.
    let mut brain = fleet(&[(Prefill, 40), (Mixed, 40)]);
    brain.handle(
        Micros(0),
        said(StepReport {
            role_epoch: 1,
            ..report(2, Decode)
        }),
    );
    assert_eq!(opens(&mut brain, 1, 8, 8), [(2, IMPORT)]);
}

#[test]
fn one_token_needs_no_hand_off() {
    let mut brain = fleet(&[(Prefill, 40), (Decode, 40)]);
    assert_eq!(opens(&mut brain, 1, 8, 1), [(1, COMPUTE)]);
}

#[test]
fn sequence_too_long_for_the_prefill_worker_goes_to_who_can_hold_it() {
    let mut brain = fleet(&[(Prefill, 10), (Decode, 40)]);
    assert_eq!(opens(&mut brain, 1, 40, 8), [(2, COMPUTE)]);
    let mut brain = fleet(&[(Prefill, 40), (Decode, 10)]);
    assert_eq!(opens(&mut brain, 1, 40, 8), [(1, COMPUTE)]);
}

#[test]
fn prefill_worker_keeps_half_a_pool_at_most_while_decode_workers_are_full() {
    let mut brain = fleet(&[(Prefill, 16), (Decode, 4)]);
    assert_eq!(opens(&mut brain, 1, 4, 12), [(2, IMPORT)]); // Plans 4 of 16 pages at P.
    assert_eq!(opens(&mut brain, 2, 4, 12), [(1, COMPUTE)]); // Kept: 8 of 16.
    assert_eq!(opens(&mut brain, 3, 4, 12), []);
    // The decode worker gets room: the third leaves again, so it may start.
    let freed = said(StepReport {
        closed: vec![closed(0, CloseReason::Lost)],
        ..report(2, Decode)
    });
    assert_eq!(shown(&brain.handle(Micros(4), freed)), [(2, IMPORT)]);
}

#[test]
fn order_is_priority_then_arrival_and_nothing_overtakes() {
    let mut brain = fleet(&[(Mixed, 10)]);
    assert_eq!(opens(&mut brain, 1, 20, 20), [(1, COMPUTE)]);
    let mut arrive = |id, prompt, priority| {
        let mut facts = request(id, prompt, 4);
        facts.priority = priority;
        assert_eq!(brain.handle(Micros(id), Event::RequestArrived(facts)), []);
    };
    arrive(2, 36, 0); // Needs the whole pool.
    arrive(3, 4, 0); // Would fit, but stands behind.
    arrive(4, 8, -1);
    let done = said(StepReport {
        closed: vec![closed(0, CloseReason::Stop)],
        ..report(1, Mixed)
    });
    let order: Vec<u64> = brain
        .handle(Micros(9), done)
        .iter()
        .filter_map(|action| match action {
            Action::Open { sequence, .. } => Some(sequence.request.0),
            _ => None,
        })
        .collect();
    assert_eq!(order, [4]);
    let done = said(StepReport {
        closed: vec![closed(0, CloseReason::Stop)],
        ..report(1, Mixed)
    });
    assert_eq!(brain.handle(Micros(10), done).len(), 1);
    assert_eq!(brain.status().requests_waiting, 1);
}

/// Sessions and kinds of the seats that a request of three choices opens at once.
fn opens_three(brain: &mut Brain, id: u64, prompt: u32, max_tokens: u32) -> Vec<(u64, OpenKind)> {
    let mut facts = request(id, prompt, max_tokens);
    facts.choices = 3;
    shown(&brain.handle(Micros(id), Event::RequestArrived(facts)))
}

#[test]
fn choices_go_where_their_prompt_is_computed_and_count_it_once() {
    let mut brain = fleet(&[(Mixed, 60), (Mixed, 60)]);
    // More than a batch of 16, so nothing else is bound to it; 28 of 30 tokens are on full pages.
    assert_eq!(opens_three(&mut brain, 1, 30, 2), [(1, COMPUTE); 3]);
    assert_eq!(opens(&mut brain, 2, 12, 2), [(2, COMPUTE)]);
    // 30 + 2 + 2 tokens before the one, 12 before the other; with the second prompt, 24.
    assert_eq!(opens(&mut brain, 3, 12, 2), [(2, COMPUTE)]);
    assert_eq!(opens(&mut brain, 4, 4, 2), []);
    let sessions = brain.status().sessions;
    let pending = |at: usize| sessions[at].prefill_tokens_pending;
    assert_eq!((pending(0), pending(1)), (34, 24));
}

#[test]
fn a_choice_that_finds_no_room_beside_the_others_goes_elsewhere() {
    // Eight pages each.
    let mut brain = fleet(&[(Mixed, 20), (Mixed, 20)]);
    let places = opens_three(&mut brain, 1, 16, 16);
    assert_eq!(places, [(1, COMPUTE), (1, COMPUTE), (2, COMPUTE)]);
}

#[test]
fn choices_are_computed_together_and_handed_off_apart() {
    let mut brain = fleet(&[(Prefill, 60), (Prefill, 60), (Decode, 20), (Decode, 20)]);
    let imports = opens_three(&mut brain, 1, 16, 8);
    assert_eq!(imports, [(3, IMPORT), (4, IMPORT), (3, IMPORT)]);
    let opened = |session, slots: &[u32]| {
        said(StepReport {
            opened: slots.iter().copied().map(SlotId).collect(),
            ..report(session, Decode)
        })
    };
    let first = brain.handle(Micros(2), opened(3, &[0, 1]));
    assert_eq!(shown(&first), [(1, COMPUTE); 2]);
    assert_eq!(
        shown(&brain.handle(Micros(3), opened(4, &[0]))),
        [(1, COMPUTE)]
    );
}

#[test]
fn fenced_pages_are_not_promised() {
    let mut brain = fleet(&[(Mixed, 10)]);
    let mut fenced = report(1, Mixed);
    fenced.load.pages_fenced.0 = 7;
    brain.handle(Micros(1), said(fenced));
    assert_eq!(opens(&mut brain, 1, 8, 8), []);
    assert_eq!(
        shown(&brain.handle(Micros(2), said(report(1, Mixed)))),
        [(1, COMPUTE)]
    );
}

#[test]
fn suspects_and_drainers_get_nothing_new() {
    let mut brain = fleet(&[(Mixed, 10)]);
    brain.handle(
        Micros(1),
        Event::WorkerSuspected {
            session: SessionId(1),
            why: Suspicion::Silent,
        },
    );
    assert_eq!(opens(&mut brain, 1, 8, 8), []);
    assert_eq!(
        shown(&brain.handle(Micros(2), said(report(1, Mixed)))),
        [(1, COMPUTE)]
    );
    brain.handle(
        Micros(3),
        said(StepReport {
            draining: true,
            ..report(1, Mixed)
        }),
    );
    assert_eq!(opens(&mut brain, 2, 4, 4), []);
    assert!(!brain.is_ready());
}

#[test]
fn seats_are_limited_as_well_as_pages() {
    let mut brain = fleet(&[(Mixed, 200)]);
    for id in 1..=8 {
        assert_eq!(opens(&mut brain, id, 1, 2), [(1, COMPUTE)]);
    }
    assert_eq!(opens(&mut brain, 9, 1, 2), []);
}

#[test]
fn decode_worker_that_holds_no_sequence_so_long_is_passed_over() {
    let mut brain = fleet(&[(Prefill, 60)]);
    let mut short = worker(Decode, 90);
    short.model_len_max = Tokens(12);
    brain.handle(Micros(0), joined(2, short));
    brain.handle(Micros(0), joined(3, worker(Decode, 40)));
    assert_eq!(opens(&mut brain, 1, 8, 8), [(3, IMPORT)]);
    assert_eq!(opens(&mut brain, 2, 4, 8), [(2, IMPORT)]);
}
