//! Bounds and budgets: the queue, refusals, replays, deaths, moves, drain.

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    event::{CloseReason, ClosedSeat, Event, StepReport},
    fleet::Role,
    ids::{SessionId, SlotId},
    request::RejectReason,
    units::{Micros, Tokens},
};

use crate::cells::{D, E, P, arrived, ended, lost, opened, token};
use crate::support::{NEVER, closed, joined, plain, report, request, said, sequence, worker};

fn brain(config: BrainConfig) -> Brain {
    let mut brain = Brain::new(config);
    brain.handle(Micros(0), joined(1, worker(Role::Mixed, 40)));
    brain
}

fn why(actions: &[Action]) -> Vec<RejectReason> {
    let why = |action: &Action| match *action {
        Action::Reject { why, .. } => Some(why),
        _ => None,
    };
    actions.iter().filter_map(why).collect()
}

fn arrive(brain: &mut Brain, id: u64, prompt: u32) -> Vec<Action> {
    brain.handle(Micros(id), Event::RequestArrived(request(id, prompt, 4)))
}

#[test]
fn full_queue_rejects_with_a_hint() {
    let config = BrainConfig {
        queue_requests_max: 2,
        ..plain()
    };
    let (hint_min, hint_max) = (config.retry_after_min, config.retry_after_max);
    let mut brain = brain(config);
    for id in 1..=4 {
        assert_eq!(why(&arrive(&mut brain, id, 16)), [], "{id}");
    }
    let full = arrive(&mut brain, 5, 16);
    let [
        Action::Reject {
            why: RejectReason::QueueFull,
            retry_after,
            ..
        },
    ] = full[..]
    else {
        panic!("{full:?}");
    };
    assert!(
        (hint_min..=hint_max).contains(&retry_after),
        "{retry_after:?}"
    );
    // Every choice of a request is answered, and a request counts once.
    let mut facts = request(6, 16, 4);
    facts.choices = 3;
    let rejected = brain.handle(Micros(6), Event::RequestArrived(facts));
    assert_eq!(why(&rejected), [RejectReason::QueueFull; 3]);
    assert_eq!(brain.status().requests_waiting, 2);
}

#[test]
fn waiting_tokens_are_limited_unless_nothing_else_waits() {
    let config = BrainConfig {
        queue_tokens_max: 20,
        ..plain()
    };
    let mut brain = brain(config);
    for id in 1..=2 {
        arrive(&mut brain, id, 16);
    }
    assert_eq!(why(&arrive(&mut brain, 3, 21)), []);
    assert_eq!(why(&arrive(&mut brain, 4, 1)), [RejectReason::QueueFull]);
    assert_eq!(brain.status().tokens_waiting, 21);
}

#[test]
fn a_prompt_of_several_choices_waits_once() {
    let mut brain = brain(BrainConfig {
        queue_tokens_max: 40,
        ..plain()
    });
    for id in 1..=2 {
        arrive(&mut brain, id, 16);
    }
    let mut facts = request(3, 30, 4);
    facts.choices = 8;
    assert_eq!(
        why(&brain.handle(Micros(3), Event::RequestArrived(facts))),
        []
    );
    assert_eq!(brain.status().tokens_waiting, 37);
}

#[test]
fn drain_takes_no_new_request_and_ends_the_old_ones() {
    let mut brain = brain(plain());
    for id in 1..=3 {
        arrive(&mut brain, id, 16);
    }
    assert_eq!(brain.handle(Micros(4), Event::DrainStarted), []);
    assert_eq!(why(&arrive(&mut brain, 5, 16)), [RejectReason::Draining]);
    let done = StepReport {
        closed: vec![closed(0, CloseReason::Stop)],
        ..report(1, Role::Mixed)
    };
    assert!(matches!(
        brain.handle(Micros(6), said(done))[..],
        [Action::Open { .. }]
    ));
}

fn end(why: CloseReason, retry_after: Micros) -> Event {
    let closed = vec![ClosedSeat {
        slot: SlotId(0),
        why,
        retry_after,
    }];
    said(StepReport {
        closed,
        ..report(1, Role::Mixed)
    })
}

#[test]
fn refusal_is_followed_by_a_random_doubling_wait_and_costs_no_replay() {
    let (mut brain, mut now) = (brain(plain()), Micros(0));
    arrive(&mut brain, 1, 8);
    let mut waits = Vec::new();
    for _ in 0..40 {
        assert_eq!(brain.handle(now, end(CloseReason::Refused, Micros(0))), []);
        let at = brain.next_wake().expect("the end of the wait");
        waits.push(at.since(now).0);
        now = at;
        assert!(matches!(
            brain.handle(now, Event::Woke)[..],
            [Action::Open { .. }]
        ));
    }
    assert!((5_000..=10_000).contains(&waits[0]), "{waits:?}");
    assert!(
        waits.iter().all(|wait| (5_000..=50_000).contains(wait)),
        "{waits:?}"
    );
    assert!(waits[4..].iter().any(|&wait| wait > 40_000), "{waits:?}");
    assert_eq!(brain.status().replays_total, 0);
    // A worker may ask for a longer wait, within limits.
    brain.handle(now, end(CloseReason::Refused, Micros(u64::MAX)));
    assert_eq!(
        brain.next_wake(),
        Some(now.plus(Micros::from_millis(1_000)))
    );
}

#[test]
fn replays_have_a_budget_and_carry_what_was_made() {
    let mut brain = brain(plain());
    arrive(&mut brain, 1, 8);
    for replay in 0..3 {
        let tokens = vec![(SlotId(0), Tokens(1))];
        let closed = vec![closed(0, CloseReason::Lost)];
        let lost = StepReport {
            tokens,
            closed,
            ..report(1, Role::Mixed)
        };
        let again = brain.handle(Micros(2), said(lost));
        assert!(matches!(again[..], [Action::Open { .. }]), "{again:?}");
        let status = brain.status();
        // Same pages, more to compute.
        assert_eq!(status.sessions[0].pages_used, 3);
        assert_eq!(status.sessions[0].prefill_tokens_pending, 8 + replay + 1);
        assert_eq!(status.replays_total, replay + 1);
    }
    let over = brain.handle(Micros(3), end(CloseReason::Lost, Micros(0)));
    assert_eq!(why(&over), [RejectReason::WorkerFailed]);
    assert_eq!(brain.status().replays_total, 3);
}

#[test]
fn second_worker_that_dies_under_a_sequence_ends_it() {
    let mut brain = brain(plain());
    for session in 2..=4 {
        brain.handle(Micros(0), joined(session, worker(Role::Mixed, 40)));
    }
    arrive(&mut brain, 1, 8);
    let again = brain.handle(
        Micros(2),
        Event::SessionLost {
            session: SessionId(1),
        },
    );
    assert_eq!(again, []);
    let again = brain.handle(Micros(20_002), Event::Woke);
    let [Action::Open { seat, .. }] = again[..] else {
        panic!("{again:?}")
    };
    let over = brain.handle(
        Micros(3),
        Event::SessionLost {
            session: seat.session,
        },
    );
    assert_eq!(why(&over), [RejectReason::PoisonSuspect]);
    assert_eq!(brain.status().sessions.len(), 2);
}

#[test]
fn session_broken_by_the_router_is_no_death() {
    let mut brain = brain(plain());
    for session in 2..=3 {
        brain.handle(Micros(0), joined(session, worker(Role::Mixed, 40)));
    }
    arrive(&mut brain, 1, 8);
    for session in 1..=2 {
        let lie = StepReport {
            opened: vec![SlotId(9)],
            ..report(session, Role::Mixed)
        };
        let broken = brain.handle(Micros(2), said(lie));
        assert!(
            matches!(broken[..], [Action::Break { .. }, Action::Open { .. }]),
            "{broken:?}"
        );
    }
    assert_eq!(brain.status().violations_total, 2);
}

#[test]
fn replay_goes_before_everything_that_waits() {
    let mut brain = brain(plain());
    for id in 1..=3 {
        arrive(&mut brain, id, 16);
    }
    let mut facts = request(4, 16, 4);
    facts.priority = -9;
    brain.handle(Micros(4), Event::RequestArrived(facts));
    let again = brain.handle(Micros(5), end(CloseReason::Preempted, Micros(0)));
    let [Action::Open { sequence: id, .. }] = again[..] else {
        panic!("{again:?}")
    };
    assert_eq!(id, sequence(1, 0));
}

#[test]
fn moves_have_a_budget() {
    let mut brain = brain(plain());
    brain.handle(Micros(0), joined(2, worker(Role::Mixed, 40)));
    arrive(&mut brain, 1, 8);
    let ask = || Event::MoveRequested {
        sequence: sequence(1, 0),
        to: SessionId(2),
    };
    let refused = |slot| {
        let closed = vec![closed(slot, CloseReason::Lost)];
        said(StepReport {
            closed,
            ..report(2, Role::Mixed)
        })
    };
    for _ in 0..3 {
        assert_eq!(brain.handle(Micros(1), ask()).len(), 1);
        assert_eq!(brain.handle(Micros(1), refused(0)), []);
    }
    assert_eq!(brain.handle(Micros(1), ask()), []);
}

#[test]
fn waiting_request_gives_up_at_its_own_time_without_workers() {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), Event::Woke); // No worker from now on.
    let second = Micros::from_millis(1_000);
    brain.handle(second, Event::RequestArrived(request(1, 8, 4)));
    // The fleet has been empty for 10 s; the request has waited 9.
    assert_eq!(brain.handle(Micros::from_millis(10_000), Event::Woke), []);
    let over = brain.handle(Micros::from_millis(11_000), Event::Woke);
    assert_eq!(why(&over), [RejectReason::NoWorker]);
    // A worker that comes in time, or came and went, starts the wait anew.
    brain.handle(
        Micros::from_millis(12_000),
        Event::RequestArrived(request(2, 800, 4)),
    );
    brain.handle(
        Micros::from_millis(13_000),
        Event::RequestArrived(request(3, 8, 4)),
    );
    let mut small = worker(Role::Mixed, 40);
    small.num_seqs_max = 1;
    let joined = brain.handle(Micros::from_millis(14_000), joined(1, small));
    assert_eq!(why(&joined), [RejectReason::TooLarge]);
    brain.handle(
        Micros::from_millis(20_000),
        Event::SessionLost {
            session: SessionId(1),
        },
    );
    assert_eq!(brain.handle(Micros::from_millis(29_000), Event::Woke), []);
    let over = brain.handle(Micros::from_millis(30_000), Event::Woke);
    assert_eq!(why(&over), [RejectReason::NoWorker]);
}

#[test]
fn hand_off_gets_twice_its_predicted_time_within_limits() {
    // 3 pages of 1,000 bytes at 1 MB/s are 3 ms.
    for (bytes_per_s, step_us, expected_us) in [
        (0.0, 0, 500_000),
        (1e6, 0, 2 * 3_000 + 500_000),
        (1e6, 40_000, 2 * 43_000 + 500_000),
        (1e3, 0, 5_000_000),
        (0.0, u32::MAX, 5_000_000),
    ] {
        let mut brain = Brain::new(plain());
        let mut source = worker(Role::Prefill, 40);
        source.timings.handoff_bytes_per_s = bytes_per_s;
        brain.handle(Micros(0), joined(1, source));
        brain.handle(Micros(0), joined(2, worker(Role::Decode, 40)));
        arrive(&mut brain, 1, 8);
        let opened = StepReport {
            opened: vec![SlotId(0)],
            ..report(2, Role::Decode)
        };
        brain.handle(Micros(2), said(opened));
        let mut first = report(1, Role::Prefill);
        first.tokens = vec![(SlotId(0), Tokens(1))];
        first.load.step_us = step_us;
        brain.handle(Micros(100), said(first));
        assert_eq!(
            brain.next_wake(),
            Some(Micros(100 + expected_us)),
            "{bytes_per_s} {step_us}"
        );
    }
}

/// Two workers make what joins them with their first hand-off; and again when one is another. If
/// it fails, what joins them does not come, and a breaker must hear of it soon.
#[test]
fn the_first_hand_off_of_two_workers_has_time_to_join_them() {
    for is_lost in [false, true] {
        let mut brain = Brain::new(BrainConfig {
            handoff_meet: Micros(70_000),
            death_settle: Micros(0),
            ..plain()
        });
        brain.handle(Micros(0), joined(P, worker(Role::Prefill, 40)));
        // Request, its destination, what is added to its hand-off.
        for (id, to, more_us) in [(1, D, 70_000), (2, D, 0), (3, E, 70_000)] {
            let now = Micros(id);
            if id != 2 {
                brain.handle(now, lost(D));
                brain.handle(now, joined(to, worker(Role::Decode, 40)));
            }
            arrive(&mut brain, id, 8);
            brain.handle(now, opened(to, 0));
            brain.handle(now, token(P, 0));
            let due = now.plus(Micros(500_000 + more_us));
            assert_eq!(brain.next_wake(), Some(due), "{id}");
            if is_lost {
                brain.handle(now, ended(to, 0, CloseReason::Lost));
                brain.handle(now, ended(P, 0, CloseReason::Stop));
            } else {
                brain.handle(now, arrived(to, 0, 1));
                brain.handle(now, ended(P, 0, CloseReason::Asked));
                brain.handle(now, ended(to, 0, CloseReason::Stop));
            }
        }
    }
}

/// Answers that end before their hand-off does tell nothing of it; they must not hide a way that is
/// cut for ever.
#[test]
fn a_first_hand_off_that_its_answer_did_not_wait_for_had_its_time() {
    for (after_us, more_us) in [(499_999, 70_000), (500_000, 0)] {
        let mut brain = Brain::new(BrainConfig {
            handoff_meet: Micros(70_000),
            ..plain()
        });
        brain.handle(Micros(0), joined(P, worker(Role::Prefill, 40)));
        brain.handle(Micros(0), joined(D, worker(Role::Decode, 40)));
        for (now, added_us) in [(Micros(1), 70_000), (Micros(1 + after_us), more_us)] {
            brain.handle(now, Event::RequestArrived(request(now.0, 8, 4)));
            brain.handle(now, opened(D, 0));
            brain.handle(now, token(P, 0));
            let due = now.plus(Micros(500_000 + added_us));
            assert_eq!(brain.next_wake(), Some(due), "{after_us}");
            let end = now.plus(Micros(after_us));
            brain.handle(end, ended(P, 0, CloseReason::Stop));
            brain.handle(end, ended(D, 0, CloseReason::Asked));
        }
    }
}

#[test]
fn hand_off_timer_ends_with_the_hand_off() {
    let end = |session, role, why| {
        let closed = vec![closed(0, why)];
        said(StepReport {
            closed,
            ..report(session, role)
        })
    };
    let arrived = vec![(SlotId(0), Tokens(1))];
    let ways_out = [
        said(StepReport {
            arrived,
            ..report(2, Role::Decode)
        }),
        end(1, Role::Prefill, CloseReason::Stop),
        end(1, Role::Prefill, CloseReason::Error),
        end(1, Role::Prefill, CloseReason::Preempted),
        end(2, Role::Decode, CloseReason::Lost),
        Event::SessionLost {
            session: SessionId(1),
        },
        Event::SessionLost {
            session: SessionId(2),
        },
        Event::SequenceStopped {
            sequence: sequence(1, 0),
        },
    ];
    for way_out in ways_out {
        let mut brain = Brain::new(plain());
        brain.handle(Micros(0), joined(1, worker(Role::Prefill, 40)));
        brain.handle(Micros(0), joined(2, worker(Role::Decode, 40)));
        arrive(&mut brain, 1, 8);
        let opened = StepReport {
            opened: vec![SlotId(0)],
            ..report(2, Role::Decode)
        };
        brain.handle(Micros(2), said(opened));
        let first = vec![(SlotId(0), Tokens(1))];
        brain.handle(
            Micros(3),
            said(StepReport {
                tokens: first,
                ..report(1, Role::Prefill)
            }),
        );
        assert_eq!(brain.next_wake(), Some(Micros(500_003)));
        let asked = format!("{way_out:?}");
        brain.handle(Micros(4), way_out);
        let others = [NEVER, Micros(20_004)]; // The deadline; the wait after a death.
        assert!(
            brain.next_wake().is_none_or(|at| others.contains(&at)),
            "{asked}"
        );
    }
}
