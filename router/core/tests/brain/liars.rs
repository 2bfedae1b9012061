//! Workers that behave, until they lie: what happened in a random run, faults and all, is told once
//! more with lies in it. So they come in the middle of hand-offs, moves and replays, where garbage
//! from the beginning (`lies.rs`) never gets. The brain neither panics nor remembers for ever.

use std::collections::BTreeSet;

use dopd_core::{
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, StepReport},
    ids::{RequestId, SessionId, SlotId},
    policy::PolicyConfig,
    units::{Micros, Pages, Tokens},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use crate::{
    random_events::any_scene,
    support::{
        cases, closed, request,
        scene::{Faults, Op, Scene, ops, run},
    },
};

/// What is changed of an event, chosen by `kind` and `how`.
#[derive(Clone, Copy, Debug)]
struct Lie {
    /// Which event, of so many.
    at: usize,
    kind: u8,
    how: u8,
}

const KINDS: u8 = 18;

fn lies() -> impl Strategy<Value = Vec<Lie>> {
    let lie = (any::<u16>(), 0..KINDS, any::<u8>());
    let lie = lie.prop_map(|(at, kind, how)| Lie {
        at: usize::from(at),
        kind,
        how,
    });
    prop::collection::vec(lie, 1..30)
}

/// Tells the events once more, with lies in place of some of them.
fn twist(events: &mut Vec<(Micros, Event)>, Lie { at, kind, how }: Lie) {
    if events.is_empty() {
        return;
    }
    let at = at % events.len();
    let (now, event) = &mut events[at];
    let now = *now;
    match (kind, event) {
        (0, _) => drop(events.remove(at)),
        (1, event) => {
            let again = (now, event.clone());
            events.insert(at + usize::from(how) % (events.len() - at), again);
        }
        (2, _) => {
            let other = at + usize::from(how) % (events.len() - at);
            events.swap(at, other);
        }
        (3, _) => {
            let hour = Micros::from_millis(3_600_000);
            let back = now.since(Micros(u64::from(how) * 1_000));
            events[at].0 = if how == 255 { now.plus(hour) } else { back };
        }
        (_, Event::StepReported(report)) => untrue(report, kind, how),
        (_, Event::RequestArrived(facts)) => {
            let id = RequestId(facts.id.0 + u64::from(how % 3));
            *facts = request(id.0, u32::from(how), u32::MAX >> (how % 32));
        }
        (_, Event::WorkerJoined { session, worker }) => {
            *session = SessionId(u64::from(how % 9));
            worker.page_size = u32::from(how % 5);
            worker.pages_total = Pages(u32::MAX >> (how % 32));
            worker.num_seqs_max = u32::from(how % 3);
        }
        (_, Event::SessionLost { session }) => {
            *session = SessionId(session.0 + u64::from(how % 3));
        }
        _ => {}
    }
}

/// A report that is not as it was.
fn untrue(report: &mut StepReport, kind: u8, how: u8) {
    let slot = SlotId(u32::from(how % 8));
    let many = Tokens(u32::MAX >> (how % 32));
    match kind {
        4 => report.closed.extend(report.closed.clone()),
        5 => report.tokens.push((slot, many)),
        6 => report.arrived.push((slot, many)),
        7 => report.opened.push(slot),
        8 => report.session = SessionId(u64::from(how % 9)),
        9 => {
            let why = [
                CloseReason::Stop,
                CloseReason::Refused,
                CloseReason::Lost,
                CloseReason::Preempted,
            ];
            report
                .closed
                .push(closed(slot.0, why[usize::from(how / 64)]));
        }
        10 => report.tokens.clear(),
        11 => report.closed.clear(),
        12 => report
            .arrived
            .iter_mut()
            .for_each(|(_, pos)| pos.0 = many.0),
        13 => {
            (report.load.pages_fenced, report.load.pages_owned) = (Pages(many.0), Pages(many.0));
            report.load.prefill_tokens_queued = many;
            (report.load.step_us, report.load.decode_step_us) = (many.0, many.0);
            (
                report.load.step_expected_us,
                report.load.mixed_penalty_permille,
            ) = (1, many.0);
        }
        14 => report
            .stored
            .extend((0..500).map(|hash| hash * u64::from(how))),
        15 => (report.role_epoch, report.draining) = (u64::from(how), how.is_multiple_of(2)),
        16 => report.opened.clear(),
        _ => report.reused.push((slot, many)),
    }
}

/// What the brain is told from then on, and where it ends: nothing waits, nothing runs, nothing is
/// due. Returns when that is.
fn tell(
    brain: &mut Brain,
    config: &BrainConfig,
    from: Micros,
    events: Vec<(Micros, Event)>,
) -> Micros {
    let mut end = from;
    let (mut sessions, mut requests) = (BTreeSet::new(), BTreeSet::new());
    for (now, event) in events {
        match &event {
            Event::WorkerJoined { session, .. } => drop(sessions.insert(*session)),
            Event::RequestArrived(facts) => drop(requests.insert(facts.id)),
            _ => {}
        }
        end = end.max(from.plus(now));
        brain.handle(from.plus(now), event);
        let status = brain.status();
        assert!(status.sessions.len() <= sessions.len());
        let sequences = status.sequences_running + status.requests_waiting;
        assert!(
            sequences <= requests.len() * 3,
            "{sequences} of {}",
            requests.len()
        );
        for session in &status.sessions {
            // What a report says of itself is no room for others.
            let seats = session.seats_open;
            assert!(seats as usize <= requests.len() * 6, "{session:?}");
        }
        let waits = config.queue_requests_max + requests.len();
        assert!(status.requests_waiting <= waits);
    }
    for session in sessions {
        brain.handle(Micros(0), Event::SessionLost { session });
    }
    for request in requests {
        brain.handle(Micros(0), Event::RequestCancelled { request });
    }
    let status = brain.status();
    assert_eq!((status.requests_waiting, status.tokens_waiting), (0, 0));
    assert_eq!((status.sequences_running, status.sessions.len()), (0, 0));
    assert_eq!((status.handoffs_running, status.retries_running), (0, 0));
    let end = end.plus(Micros::from_millis(60_000));
    brain.handle(end, Event::Woke);
    assert_eq!(brain.next_wake(), None, "a timer outlived its sequence");
    end
}

/// A run of faults, then what was told in it, with lies.
fn told(scene: &Scene, ops: &[Op], lies: &[Lie]) -> Vec<(Micros, Event)> {
    let mut events = run(scene, ops, Faults::All).events;
    for &lie in lies {
        twist(&mut events, lie);
    }
    events
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn whatever_workers_say_in_the_middle_of_it_nothing_is_left_behind(
        ops in ops(), scene in any_scene(), lies in lies(),
    ) {
        let mut brain = Brain::new(scene.config.clone());
        tell(&mut brain, &scene.config, Micros(0), told(&scene, &ops, &lies));
    }
}

/// What a brain remembers of runs that are over does not grow with their number.
#[test]
fn what_is_remembered_of_liars_is_bounded() {
    let mut runner = TestRunner::deterministic();
    let drawn = (any_scene(), ops(), lies()).new_tree(&mut runner);
    let (scene, ..) = drawn
        .map(|tree| tree.current())
        .expect("nothing is filtered");
    // Lengths of a thousand prompts and decisions for people would fill up only later.
    let config = BrainConfig {
        explain_decisions_max: 0,
        policy: PolicyConfig {
            fair_ratio: 0.0,
            ..scene.config.policy
        },
        ..scene.config
    };
    let mut brain = Brain::new(config.clone());
    let (mut sizes, mut now) = (Vec::new(), Micros(0));
    for round in 0..60 {
        let drawn = (ops(), lies()).new_tree(&mut runner);
        let (ops, lies) = drawn
            .map(|tree| tree.current())
            .expect("nothing is filtered");
        let scene = Scene {
            config: config.clone(),
            roles: vec![10, 11, 12, 1],
            pace: 10,
        };
        let mut events = told(&scene, &ops, &lies);
        for (_, event) in &mut events {
            if let Event::RequestArrived(facts) = event {
                facts.id.0 += round * 10_000;
            }
        }
        now = tell(&mut brain, &config, now, events);
        // All that it holds is in there.
        sizes.push(format!("{brain:?}").len());
    }
    let (before, after) = (sizes[29], sizes[59]);
    assert!(after < before * 3 / 2, "{sizes:?}");
}
