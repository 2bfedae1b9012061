//! Workers that lie: whatever they report, the brain neither panics nor forgets what it owes, and
//! whoever breaks the protocol loses its session at once.

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    cost::{Timings, VALUE_MAX},
    event::{CloseReason, ClosedSeat, Event, StepReport, Suspicion},
    fleet::{Role, WorkerLoad},
    ids::{RequestId, SessionId, SlotId},
    policy::{Order, PolicyConfig, Refuse},
    request::{PrefixMark, RequestFacts, Slo},
    units::{Micros, Pages, Tokens},
};
use proptest::prelude::*;

use crate::support::{cases, joined, plain, report, request, said, sequence, worker};

fn any_tokens() -> impl Strategy<Value = Tokens> {
    prop_oneof![0..9_u32, Just(u32::MAX), any::<u32>()].prop_map(Tokens)
}

fn any_slot() -> impl Strategy<Value = SlotId> {
    prop_oneof![9 => 0..6_u32, 1 => any::<u32>()].prop_map(SlotId)
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Prefill), Just(Role::Decode), Just(Role::Mixed)]
}

fn any_why() -> impl Strategy<Value = CloseReason> {
    use CloseReason::{Asked, Error, Length, Lost, Preempted, Refused, Stop};
    prop::sample::select(vec![Asked, Error, Length, Lost, Preempted, Refused, Stop])
}

fn any_load() -> impl Strategy<Value = WorkerLoad> {
    (any_tokens(), any_tokens(), any::<u64>()).prop_map(|(a, b, step)| WorkerLoad {
        step,
        step_us: a.0,
        pages_free: Pages(b.0),
        pages_cached: Pages(a.0),
        pages_fenced: Pages(b.0 / 2),
        pages_owned: Pages(a.0 / 2),
        running: a.0,
        prefill_tokens_queued: b,
        step_prefill_tokens: a,
        step_decode_seqs: b.0,
        step_expected_us: a.0 / 3,
        decode_step_us: a.0,
        mixed_penalty_permille: a.0,
        steps_mixed: step,
        steps_paused: step,
        preempted: step,
    })
}

fn any_report() -> impl Strategy<Value = Event> {
    let pairs = || prop::collection::vec((any_slot(), any_tokens()), 0..3);
    let ends = prop::collection::vec((any_slot(), any_why(), any::<u64>()), 0..3);
    let slots = prop::collection::vec(any_slot(), 0..2);
    let head = (
        1..9_u64,
        any_role(),
        0..3_u64,
        prop::bool::weighted(0.1),
        any_load(),
    );
    let cache = (
        pairs(),
        prop::collection::vec(0..20_u64, 0..4),
        prop::collection::vec(0..20_u64, 0..4),
    );
    let columns = (slots, pairs(), pairs(), ends, cache);
    (head, columns).prop_map(|(head, (opened, arrived, tokens, ends, cache))| {
        let (reused, stored, evicted) = cache;
        let (session, role, role_epoch, draining, load) = head;
        let end = |(slot, why, us)| ClosedSeat {
            slot,
            why,
            retry_after: Micros(us),
        };
        said(StepReport {
            session: SessionId(session),
            role,
            role_epoch,
            draining,
            is_stuck: load.step % 4 == 0,
            load,
            opened,
            arrived,
            tokens,
            closed: ends.into_iter().map(end).collect(),
            reused,
            stored,
            evicted,
        })
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let session = || (1..9_u64).prop_map(SessionId);
    prop_oneof![
        6 => any_report(),
        3 => any_request(),
        2 => (1..9_u64, any_role(), 0..60_u32, 0..9_u32).prop_map(|(session, role, pages, odd)| {
            let mut facts = worker(role, pages);
            (facts.page_size, facts.num_seqs_max) = (odd, odd);
            facts.page_bytes = u64::MAX >> odd;
            facts.incarnation = u64::from(odd % 3);
            facts.timings = match odd % 4 {
                0 => Timings::h100_8b(),
                1 => Timings { compute_us_per_token: VALUE_MAX, weights_us: VALUE_MAX, ..Timings::h100_70b() },
                _ => Timings::instant(),
            };
            joined(session, facts)
        }),
        1 => session().prop_map(|session| Event::SessionLost { session }),
        1 => session().prop_map(|session| Event::SessionBroken { session }),
        1 => (session(), any::<bool>()).prop_map(|(session, is_stuck)| {
            let why = if is_stuck { Suspicion::Stuck } else { Suspicion::Silent };
            Event::WorkerSuspected { session, why }
        }),
        1 => (0..40_u64, session()).prop_map(|(id, to)| {
            Event::MoveRequested { sequence: sequence(id, 0), to }
        }),
        1 => (0..40_u64).prop_map(|id| Event::RequestCancelled { request: RequestId(id) }),
        1 => (0..40_u64).prop_map(|id| Event::SequenceStopped { sequence: sequence(id, 1) }),
        1 => Just(Event::Woke),
    ]
}

/// A request with any numbers.
fn any_request() -> impl Strategy<Value = Event> {
    let tokens = || prop_oneof![3 => 0..40_u32, 1 => any::<u32>()].prop_map(Tokens);
    let size = (
        0..40_u64,
        0..4_u8,
        tokens(),
        tokens(),
        any::<i32>(),
        0..50_000_u64,
    );
    let time = || prop::option::of(prop_oneof![0..9_000_u64, any::<u64>()].prop_map(Micros));
    let weight = prop_oneof![3 => 0..4_u32, 1 => any::<u32>()];
    let order = (
        time(),
        time(),
        0..4_u64,
        weight,
        prop::option::of(any::<i64>()),
    );
    (size, order).prop_map(|(size, (ttft, tpot, tenant, weight, order_key))| {
        let (id, choices, prompt, max, priority, deadline) = size;
        Event::RequestArrived(RequestFacts {
            choices,
            priority,
            deadline: Micros(deadline),
            slo: Slo { ttft, tpot },
            tenant,
            weight,
            order_key,
            prefix: (0..id % 4)
                .map(|hash| PrefixMark { pages: max.0, hash })
                .collect(),
            ..request(id, prompt.0, max.0)
        })
    })
}

/// The plain rules, and all of them with a small queue.
fn any_config() -> impl Strategy<Value = BrainConfig> {
    let all = |refuse, order| BrainConfig {
        queue_requests_max: 6,
        queue_tokens_max: 200,
        policy: PolicyConfig {
            refuse,
            order,
            ttft: Micros(3_000),
            late_max: Micros(3_000),
            ..PolicyConfig::default()
        },
        ..BrainConfig::default()
    };
    let orders = [Order::Fcfs, Order::Sjf, Order::Edf, Order::Aged];
    let all = (any::<bool>(), prop::sample::select(orders.to_vec()))
        .prop_map(move |(early, by)| all(if early { Refuse::Early } else { Refuse::Late }, by));
    prop_oneof![Just(plain()), all]
}

proptest! {
    #![proptest_config(cases(250))]

    #[test]
    fn garbage_neither_panics_nor_leaves_anything_behind(
        events in prop::collection::vec((0..2_000_u64, any_event()), 1..200),
        config in any_config(),
    ) {
        let mut brain = Brain::new(config);
        let mut now = Micros(0);
        for (later, event) in events {
            now = now.plus(Micros(later));
            let mut broken = Vec::new();
            for action in brain.handle(now, event) {
                let session = match action {
                    Action::Break { session, .. } => {
                        broken.push(session);
                        continue;
                    }
                    Action::Open { seat, .. } | Action::Send { seat, .. }
                    | Action::Close { seat } | Action::Switch { seat, .. } => seat.session,
                    Action::Reject { .. } => continue,
                };
                prop_assert!(!broken.contains(&session), "a command after the break");
            }
        }
        for session in 1..9 {
            brain.handle(now, Event::SessionLost { session: SessionId(session) });
        }
        for id in 0..40 {
            brain.handle(now, Event::RequestCancelled { request: RequestId(id) });
        }
        let status = brain.status();
        prop_assert_eq!((status.requests_waiting, status.tokens_waiting), (0, 0));
        prop_assert_eq!((status.sequences_running, status.sessions.len()), (0, 0));
        brain.handle(now.plus(Micros::from_millis(20_000)), Event::Woke);
        prop_assert_eq!(brain.next_wake(), None);
    }
}

/// One worker with one sequence of two tokens at most, then what it says of it.
fn answer(tell: impl FnOnce(&mut StepReport)) -> Vec<Action> {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Mixed, 40)));
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 2)));
    let mut lie = report(1, Role::Mixed);
    tell(&mut lie);
    brain.handle(Micros(1), said(lie))
}

#[test]
fn more_tokens_than_the_limit_break_the_session() {
    assert_eq!(
        answer(|report| report.tokens.push((SlotId(0), Tokens(2)))),
        []
    );
    let broken = answer(|report| report.tokens.push((SlotId(0), Tokens(3))));
    assert!(
        matches!(
            broken[..],
            [Action::Break {
                session: SessionId(1),
                ..
            }]
        ),
        "{broken:?}"
    );
}

#[test]
fn an_unknown_session_is_not_heard() {
    assert_eq!(answer(|report| report.session = SessionId(2)), []);
}

#[test]
fn a_label_of_an_older_epoch_is_not_taken() {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Prefill, 40)));
    for (role_epoch, role) in [(3, Role::Decode), (2, Role::Mixed)] {
        brain.handle(
            Micros(1),
            said(StepReport {
                role_epoch,
                ..report(1, role)
            }),
        );
        assert_eq!(brain.status().sessions[0].role, Role::Decode);
    }
}

#[test]
fn a_position_behind_the_client_breaks_the_session() {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Prefill, 60)));
    brain.handle(Micros(0), joined(2, worker(Role::Decode, 40)));
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
    let decode = || report(2, Role::Decode);
    brain.handle(
        Micros(1),
        said(StepReport {
            opened: vec![SlotId(0)],
            ..decode()
        }),
    );
    let tokens = vec![(SlotId(0), Tokens(2))];
    brain.handle(
        Micros(2),
        said(StepReport {
            tokens,
            ..report(1, Role::Prefill)
        }),
    );
    let arrived = vec![(SlotId(0), Tokens(1))];
    let broken = brain.handle(
        Micros(3),
        said(StepReport {
            arrived,
            ..decode()
        }),
    );
    let [
        Action::Break {
            session: SessionId(2),
            ..
        },
        Action::Send { to: None, .. },
    ] = broken[..]
    else {
        panic!("{broken:?}");
    };
}

/// A hand-off of a request of at most three tokens, up to its Send: P (1) to D (2), slots 0.
fn shipping() -> Brain {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Prefill, 60)));
    brain.handle(Micros(0), joined(2, worker(Role::Decode, 40)));
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 3)));
    let opened = vec![SlotId(0)];
    let decode = report(2, Role::Decode);
    brain.handle(Micros(1), said(StepReport { opened, ..decode }));
    brain
}

fn made(session: u64, role: Role, tokens: u32) -> StepReport {
    StepReport {
        tokens: vec![(SlotId(0), Tokens(tokens))],
        ..report(session, role)
    }
}

#[test]
fn tokens_of_another_seat_are_not_counted() {
    let mut brain = shipping();
    assert_eq!(brain.handle(Micros(2), said(made(2, Role::Decode, 3))), []);
    assert_eq!(brain.handle(Micros(3), said(made(1, Role::Prefill, 3))), []);
}

#[test]
fn tokens_in_the_report_of_their_arrival_are_counted() {
    let mut brain = shipping();
    let arrived = StepReport {
        arrived: vec![(SlotId(0), Tokens(1))],
        ..made(2, Role::Decode, 2)
    };
    assert_eq!(brain.handle(Micros(2), said(arrived)).len(), 2);
    let fourth = brain.handle(Micros(3), said(made(2, Role::Decode, 1)));
    assert!(
        matches!(fourth[..], [Action::Break { .. }, ..]),
        "{fourth:?}"
    );
}

/// Its prompts take three centuries each, it says, and it has room for all of them.
#[test]
fn who_tells_absurd_step_times_overflows_nothing() {
    let mut facts = worker(Role::Mixed, 1 << 28);
    (facts.num_seqs_max, facts.batch_tokens_max) = (u32::MAX, Tokens(u32::MAX));
    facts.timings.compute_us_per_token = VALUE_MAX;
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, facts));
    for id in 0..3_000 {
        let facts = request(id, 9, 9);
        let opened = brain.handle(Micros(id), Event::RequestArrived(facts));
        assert!(matches!(opened[..], [Action::Open { .. }]), "{opened:?}");
    }
    for id in 0..3_000 {
        let request = RequestId(id);
        brain.handle(Micros(id), Event::RequestCancelled { request });
    }
    assert_eq!(brain.status().sequences_running, 0);
}
