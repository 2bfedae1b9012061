//! Who goes first of those that wait: the policy's order, those that are late, refusals for a
//! target.

use dopd_core::{
    brain::BrainConfig,
    event::CloseReason,
    fleet::Role,
    ids::RequestId,
    policy::{Order, PolicyConfig, Refuse},
    request::{MissedTarget, RejectReason, RequestFacts, Slo},
    units::{Micros, Tokens},
};

use crate::support::{
    self, closed,
    line::{Line, millis},
    report, request, said,
};

fn policy(policy: PolicyConfig) -> BrainConfig {
    BrainConfig {
        policy,
        ..support::plain()
    }
}

fn by(order: Order) -> BrainConfig {
    policy(PolicyConfig {
        order,
        ..PolicyConfig::plain()
    })
}

/// Demotion and refusal as by default, nothing else.
fn late(refuse: Refuse) -> BrainConfig {
    policy(PolicyConfig {
        demote: true,
        refuse,
        ..PolicyConfig::plain()
    })
}

fn due(facts: RequestFacts, ttft: Micros) -> RequestFacts {
    RequestFacts {
        slo: Slo {
            ttft: Some(ttft),
            tpot: None,
        },
        ..facts
    }
}

fn prio(facts: RequestFacts, priority: i32) -> RequestFacts {
    RequestFacts { priority, ..facts }
}

/// Four prompts behind a fifth: (tokens, arrival in ms, target in ms).
fn order_of(config: BrainConfig, prompts: &[(u32, u64, u64)]) -> Vec<u64> {
    let mut line = Line::new(config, 1);
    line.arrive(request(100, 1, 1));
    for (id, &(tokens, at, ttft)) in (0..).zip(prompts) {
        line.wait(millis(at).since(line.now));
        line.arrive(due(request(id, tokens, 1), millis(ttft)));
    }
    line.drain().split_off(1)
}

#[test]
fn each_order_goes_by_its_key() {
    // Keys of `Aged`: 0 + 10 * 300, 1,000 + 10 * 100, 2,500 + 10 * 20, 2,600 + 10 * 45.
    let prompts = [
        (300, 0, 90_000),
        (100, 1_000, 70_000),
        (20, 2_500, 80_000),
        (45, 2_600, 60_000),
    ];
    assert_eq!(order_of(by(Order::Fcfs), &prompts), [0, 1, 2, 3]);
    assert_eq!(order_of(by(Order::Sjf), &prompts), [2, 3, 1, 0]);
    assert_eq!(order_of(by(Order::Edf), &prompts), [3, 1, 2, 0]);
    assert_eq!(order_of(by(Order::Aged), &prompts), [1, 2, 0, 3]);
    let slower = BrainConfig {
        policy: PolicyConfig {
            ageing_ratio: 1.0,
            ..by(Order::Aged).policy
        },
        ..by(Order::Aged)
    };
    assert_eq!(order_of(slower, &prompts), [0, 1, 2, 3]);
}

#[test]
fn equal_keys_go_by_arrival() {
    let prompts = [(30, 0, 9_000), (30, 0, 9_000), (30, 0, 9_000)];
    for order in [Order::Fcfs, Order::Sjf, Order::Edf, Order::Aged] {
        assert_eq!(order_of(by(order), &prompts), [0, 1, 2]);
    }
}

#[test]
fn own_key_takes_the_place_of_the_policys() {
    let mut line = Line::new(by(Order::Sjf), 1);
    line.arrive(request(100, 1, 1));
    for (id, tokens, key) in [(0, 10, Some(5)), (1, 20, Some(-7)), (2, 30, Some(i64::MIN))] {
        line.arrive(RequestFacts {
            order_key: key,
            ..request(id, tokens, 1)
        });
    }
    assert_eq!(line.drain(), [100, 2, 1, 0]);
}

#[test]
fn priority_goes_before_every_order() {
    for order in [Order::Fcfs, Order::Sjf, Order::Edf, Order::Aged] {
        let mut line = Line::new(by(order), 1);
        line.arrive(request(100, 1, 1));
        line.arrive(prio(due(request(0, 1, 1), millis(1)), 1));
        line.arrive(prio(request(1, 5_000, 1), i32::MIN));
        line.arrive(prio(request(2, 5_000, 1), i32::MAX));
        assert_eq!(line.drain(), [100, 1, 0, 2], "{order:?}");
    }
}

#[test]
fn late_ones_step_behind_all_that_are_in_time_and_are_served_when_nothing_else_waits() {
    let mut line = Line::new(late(Refuse::Never), 1);
    line.arrive(request(100, 1, 1));
    line.arrive(due(request(0, 400, 1), millis(1_000)));
    line.arrive(prio(due(request(1, 100, 1), millis(1_000)), -1));
    line.wait(millis(600));
    // 600 + 400 is just in time; 0 was there before 2.
    line.arrive(due(request(2, 100, 1), millis(1_000)));
    assert_eq!(line.finish(1), Some(100));
    assert_eq!(line.finish(1), Some(1));
    line.arrive(due(request(3, 100, 1), millis(1_000)));
    assert_eq!(line.placed, [100, 1, 0]);
    line.arrive(prio(due(request(4, 100, 1), millis(1_000)), -1));
    line.arrive(due(request(5, 9, 1), millis(2_000)));
    line.wait(Micros(500_001 + 400_000));
    // 2, 3 and 4 cannot be in time any more, whatever their priority.
    assert_eq!(line.drain(), [100, 1, 0, 5, 4, 2, 3]);
    assert_eq!(line.brain.status().demotions_total, 3);
    assert_eq!(line.refused, []);
}

#[test]
fn without_demotion_nobody_steps_behind() {
    let mut line = Line::new(by(Order::Fcfs), 1);
    line.arrive(request(100, 1, 1));
    line.arrive(due(request(0, 400, 1), millis(1_000)));
    line.wait(millis(3_000));
    line.arrive(due(request(1, 400, 1), millis(1_000)));
    assert_eq!(line.drain(), [100, 0, 1]);
    assert_eq!(line.brain.status().demotions_total, 0);
}

#[test]
fn who_asked_for_a_target_is_refused_late_max_after_it() {
    let mut line = Line::new(late(Refuse::Late), 1);
    line.arrive(request(100, 1, 1));
    line.arrive(due(request(0, 50, 1), millis(1_500)));
    line.arrive(request(1, 50, 1));
    line.wait(Micros(11_500_000 - 1));
    assert_eq!(line.refused, []);
    line.wait(Micros(1));
    let [(0, RejectReason::Late, hint)] = line.refused[..] else {
        panic!("{:?}", line.refused)
    };
    assert!(hint >= BrainConfig::default().retry_after_min, "{hint:?}");
    let missed = MissedTarget {
        target: millis(1_500),
        wait: millis(11_500),
    };
    assert_eq!(line.missed, [missed]);
    line.wait(millis(600_000));
    assert_eq!(line.refused.len(), 1, "nobody asked for the other's target");
    assert_eq!(line.brain.status().late_total, 1);
    assert_eq!(line.drain(), [100, 1]);
}

#[test]
fn nobody_is_refused_late_where_the_policy_never_refuses_or_once_it_is_placed() {
    let mut line = Line::new(late(Refuse::Never), 1);
    line.arrive(request(100, 1, 1));
    line.arrive(due(request(0, 50, 1), millis(1_500)));
    line.wait(millis(600_000));
    assert_eq!(line.refused, []);
    let mut line = Line::new(late(Refuse::Late), 1);
    line.arrive(due(request(0, 50, 1), millis(1_500)));
    line.wait(millis(600_000));
    assert_eq!((line.refused.len(), line.placed.len()), (0, 1));
}

#[test]
fn a_choice_of_a_request_that_answers_is_not_refused_late() {
    for answers in [false, true] {
        let mut line = Line::new(late(Refuse::Late), 1);
        let mut both = due(request(0, 50, 10), millis(1_500));
        both.choices = 2;
        line.arrive(both);
        if answers {
            let mut step = report(1, Role::Mixed);
            step.tokens = vec![(line.running[0].0.slot, Tokens(1))];
            line.tell(said(step));
        }
        line.wait(millis(60_000));
        assert_eq!(line.refused.is_empty(), answers);
    }
}

#[test]
fn targets_that_no_order_could_meet_are_refused_at_once_only_if_asked_for_and_early() {
    let never = [(Refuse::Never, 0), (Refuse::Late, 0), (Refuse::Early, 1)];
    for (refuse, refused) in never {
        let mut line = Line::new(late(refuse), 1);
        line.arrive(due(request(0, 51, 1), millis(50)));
        assert_eq!(line.refused.len(), refused, "{refuse:?}");
    }
    let mut line = Line::new(late(Refuse::Early), 1);
    line.arrive(due(request(0, 50, 1), millis(50)));
    line.arrive(request(1, 500_000, 1));
    assert_eq!(line.refused, [], "just possible, and not asked for");
    line.arrive(due(request(2, 51, 1), millis(50)));
    let [(2, RejectReason::Unmeetable, _)] = line.refused[..] else {
        panic!("{:?}", line.refused)
    };
    let missed = MissedTarget {
        target: millis(50),
        wait: millis(101),
    };
    assert_eq!(line.missed, [missed]);
    // Whoever asks why is told both times.
    let told = line.brain.explain(&[RequestId(2)]).decisions;
    let saw = told
        .first()
        .map(|told| (told.saw.prefill_us, told.saw.target_us));
    assert_eq!(saw, Some((51_000, Some(50_000))));
}

#[test]
fn own_targets_of_the_policy_grow_with_the_prompt() {
    // 2 s, or three times the prefill.
    let mut line = Line::new(late(Refuse::Late), 1);
    line.arrive(request(100, 1, 1));
    line.arrive(request(0, 2_000, 1));
    line.arrive(request(1, 500, 1));
    line.wait(millis(1_501));
    line.arrive(request(2, 1, 1));
    line.finish(1);
    // 1 is late, 0 may begin until 4,000.
    assert_eq!(line.placed, [100, 0]);
    assert_eq!(line.drain(), [100, 0, 2, 1]);
}

#[test]
fn replay_goes_before_every_priority_and_never_steps_behind() {
    let mut line = Line::new(late(Refuse::Late), 1);
    line.arrive(prio(due(request(0, 40, 9), millis(100)), i32::MAX));
    line.arrive(prio(request(1, 1, 1), i32::MIN));
    line.wait(millis(60_000));
    let (seat, _) = line.running.pop_front().unwrap();
    let mut step = report(1, Role::Mixed);
    step.tokens = vec![(seat.slot, Tokens(2))];
    step.closed = vec![closed(seat.slot.0, CloseReason::Preempted)];
    line.tell(said(step));
    assert_eq!(line.drain(), [0, 0, 1]);
    assert_eq!(line.refused, []);
}
