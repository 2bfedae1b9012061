//! Tenants that compete: service by weight, bursts, newcomers, a full queue.

use std::collections::{BTreeMap, VecDeque};

use dopd_core::{
    brain::{BrainConfig, Chosen},
    event::CloseReason,
    fleet::Role,
    ids::RequestId,
    policy::{Order, PolicyConfig},
    request::{RejectReason, RequestFacts},
    units::Tokens,
};
use proptest::prelude::*;

use crate::support::{
    self, cases, closed,
    line::{Line, millis},
    report, request, said,
};

/// Tenants share, by arrival within a tenant.
fn shared(quantum: u32) -> BrainConfig {
    BrainConfig {
        policy: PolicyConfig {
            share_tenants: true,
            share_quantum: Tokens(quantum),
            ..PolicyConfig::plain()
        },
        ..support::plain()
    }
}

fn of(tenant: u64, weight: u32, facts: RequestFacts) -> RequestFacts {
    RequestFacts {
        tenant,
        weight,
        ..facts
    }
}

/// Takes all seats, so that whatever comes next waits.
fn occupied(config: BrainConfig, seats: u32) -> Line {
    let mut line = Line::new(config, seats);
    for id in 0..u64::from(seats) {
        line.arrive(RequestFacts {
            priority: i32::MIN,
            ..of(u64::MAX, 1, request(1_000_000 + id, 1, 1_000))
        });
    }
    line
}

/// Prompts of a few tenants by (weight, lengths), all there from the beginning.
fn any_backlog() -> impl Strategy<Value = Vec<(u32, Vec<u32>)>> {
    let lengths = prop::collection::vec(1..2_000_u32, 5..40);
    prop::collection::vec((1..20_u32, lengths), 2..6)
}

/// Lets all of them wait; returns who they are.
fn arrive_all(line: &mut Line, tenants: &[(u32, Vec<u32>)]) -> BTreeMap<u64, (u64, u32, u32)> {
    let mut known = BTreeMap::new();
    for (tenant, (weight, lengths)) in (0..).zip(tenants) {
        for &length in lengths {
            let id = known.len() as u64;
            line.arrive(of(tenant, *weight, request(id, length, 1_000)));
            known.insert(id, (tenant, *weight, length));
        }
    }
    known
}

/// Start-time fair queueing (Goyal, Vin, Cheng 1996): a prompt begins at the virtual time at which
/// all before it of its tenant have been served at the tenant's rate, and the least goes first.
fn start_tags(known: &BTreeMap<u64, (u64, u32, u32)>) -> BTreeMap<u64, f64> {
    let mut ends: BTreeMap<u64, f64> = BTreeMap::new();
    let tag = |(&id, &(tenant, weight, length)): (&u64, &(u64, u32, u32))| {
        let end = ends.entry(tenant).or_default();
        let start = *end;
        *end += f64::from(length) / f64::from(weight);
        (id, start)
    };
    known.iter().map(tag).collect()
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn prompts_alone_go_in_the_order_of_start_time_fair_queueing(tenants in any_backlog()) {
        let mut line = occupied(shared(0), 1);
        let known = arrive_all(&mut line, &tenants);
        line.placed.clear();
        while line.finish(0).is_some() {}
        let mut tags = start_tags(&known);
        prop_assert_eq!(line.placed.len(), tags.len());
        for id in &line.placed {
            let least = tags.values().copied().fold(f64::INFINITY, f64::min);
            let tag = tags.remove(id).expect("placed once");
            prop_assert!(tag <= least + 1e-6, "{id} begins at {tag}, another at {least}");
        }
    }

    #[test]
    fn service_by_weight_stays_within_the_bound(
        tenants in any_backlog(),
        answers in prop::collection::vec(0..500_u32, 1..20),
        quantum in prop::sample::select(vec![0, 500, 8_192]),
        seats in 1..5_u32,
    ) {
        let mut line = occupied(shared(quantum), seats);
        let known = arrive_all(&mut line, &tenants);
        line.placed.clear();
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        for &(tenant, ..) in known.values() {
            *left.entry(tenant).or_default() += 1;
        }
        let mut service: BTreeMap<u64, f64> = left.keys().map(|&tenant| (tenant, 0.0)).collect();
        let mut checked = 0;
        for &answer in answers.iter().cycle() {
            let Some(id) = line.finish(answer) else { break };
            for id in &line.placed[checked..] {
                let (tenant, weight, length) = known[id];
                *service.get_mut(&tenant).unwrap() += f64::from(length) / f64::from(weight);
                *left.get_mut(&tenant).unwrap() -= 1;
            }
            checked = line.placed.len();
            if let Some(&(tenant, weight, _)) = known.get(&id) {
                *service.get_mut(&tenant).unwrap() += 2.0 * f64::from(answer) / f64::from(weight);
            }
            // One burst: the longest prompt, and the answers of what runs.
            let burst = |tenant: u64| {
                let weight = f64::from(tenants[usize::try_from(tenant).unwrap()].0);
                (2_000.0 + 2.0 * 500.0 * f64::from(seats)) / weight
            };
            let waits: Vec<u64> = left.iter().filter(|&(_, &n)| n > 0).map(|(&t, _)| t).collect();
            for (&a, &b) in waits.iter().zip(waits.iter().skip(1)) {
                let gap = (service[&a] - service[&b]).abs();
                let bound = 2.0 * f64::from(quantum) + burst(a).max(burst(b));
                prop_assert!(gap <= bound, "{a} and {b} are {gap} apart, {bound} allowed");
            }
        }
        prop_assert_eq!(line.placed.len(), known.len());
    }

    #[test]
    fn tenant_alone_is_never_held_back(
        lengths in prop::collection::vec((1..500_u32, -1..2_i32, 0..400_u32), 1..60),
    ) {
        let run = |share_tenants: bool| {
            let policy = PolicyConfig { share_tenants, ..PolicyConfig::default() };
            let mut line = Line::new(BrainConfig { policy, ..BrainConfig::default() }, 2);
            for (id, &(length, priority, answer)) in (0..).zip(&lengths) {
                let facts = RequestFacts { priority, ..request(id, length, 400) };
                line.arrive(of(7, 3, facts));
                if id % 3 == 0 {
                    line.finish(answer);
                }
                line.wait(millis(50));
            }
            line.drain()
        };
        prop_assert_eq!(run(true), run(false));
    }
}

/// A server of one prompt at a time; tenant 1 floods it, tenant 2 asks every 400 ms for 40 ms of
/// it. Returns how long each prompt of tenant 2 waits at most, and how many there were.
fn flooded(config: BrainConfig) -> (u64, usize) {
    let mut line = Line::new(config, 1);
    let mut arrivals: VecDeque<(u64, u64)> = VecDeque::new();
    let (mut worst, mut served, mut seen) = (0, 0, 0);
    for id in 0..2_000 {
        line.arrive(of(1, 1, request(id, 100, 8)));
    }
    for round in 0..100_u64 {
        let id = 10_000 + round;
        arrivals.push_back((id, line.now.0));
        line.arrive(of(2, 1, request(id, 40, 8)));
        // Four prompts' time: the one that runs is done after 100 ms or 40 ms.
        let until = line.now.plus(millis(400));
        while line.now < until {
            let is_small = line.running.front().is_some_and(|&(_, id)| id >= 10_000);
            line.wait(millis(if is_small { 40 } else { 100 }));
            line.finish(8);
            for &id in &line.placed[seen..] {
                let first = arrivals.front().copied();
                if let Some((_, arrived)) = first.filter(|&(first, _)| first == id) {
                    arrivals.pop_front();
                    worst = worst.max((line.now.0 - arrived) / 1_000);
                    served += 1;
                }
            }
            seen = line.placed.len();
        }
    }
    (worst, served)
}

#[test]
fn tenant_beside_one_that_floods_waits_for_one_prompt_at_most() {
    for quantum in [0, 8_192] {
        let (worst, served) = flooded(shared(quantum));
        assert_eq!(served, 100);
        assert!(worst <= 100, "{worst} ms with a quantum of {quantum}");
    }
    let own = BrainConfig::default();
    let (worst, served) = flooded(own);
    // Besides the one that runs, one of the flood that is owed its turn (`brain/late.rs`).
    assert!(
        worst <= 200 && served == 100,
        "{worst} ms by default, {served} served"
    );
    let (worst, _) = flooded(support::plain());
    assert!(
        worst == 0 || worst > 10_000,
        "without shares it waits behind the flood: {worst}"
    );
}

#[test]
fn idle_time_earns_one_quantum_and_no_more() {
    let mut line = occupied(shared(1_000), 1);
    for id in 0..200 {
        line.arrive(of(1, 1, request(id, 100, 1)));
    }
    for _ in 0..100 {
        line.finish(0);
    }
    // Tenant 2 was away while tenant 1 was given 9,900 tokens.
    for id in 1_000..1_100 {
        line.arrive(of(2, 1, request(id, 100, 1)));
    }
    line.placed.clear();
    for _ in 0..40 {
        line.finish(0);
    }
    let ahead = line.placed.iter().take_while(|&&id| id >= 1_000).count();
    let mine = line.placed.iter().filter(|&&id| id >= 1_000).count();
    assert!((1..=21).contains(&ahead), "two quanta, one prompt: {ahead}");
    assert!((20..=31).contains(&mine), "then by turns: {mine}");
}

#[test]
fn tenants_beyond_the_bound_share_accounts_and_are_forgotten_when_idle() {
    let mut line = occupied(shared(0), 1);
    for id in 0..3_000 {
        line.arrive(of(id + 1, 1, request(id, 10, 1)));
    }
    assert_eq!(line.brain.status().tenants, 1_024 + 16);
    line.placed.clear();
    let mut placed = line.drain();
    placed.sort_unstable();
    assert_eq!(placed, (0..3_000).collect::<Vec<u64>>());
    for id in 3_000..6_000 {
        line.arrive(of(id + 1, 1, request(id, 10, 1)));
        line.finish(1);
    }
    assert_eq!(line.brain.status().tenants, 1_024 + 16);
}

#[test]
fn weights_of_zero_and_the_greatest_are_weights() {
    let config = BrainConfig {
        queue_tokens_max: u64::MAX,
        ..shared(0)
    };
    let mut line = occupied(config, 1);
    for id in 0..10 {
        line.arrive(of(1, 0, request(id, 100, 1)));
        line.arrive(of(2, 1, request(100 + id, 100, 1)));
        line.arrive(of(3, u32::MAX, request(200 + id, 1 << 29, 1)));
    }
    line.placed.clear();
    let placed = line.drain();
    assert_eq!(placed.len(), 30);
    // The greatest weight pays next to nothing, but something.
    let tenth = placed.iter().position(|&id| id == 209).expect("placed");
    assert!(tenth <= 12, "{placed:?}");
    let small: Vec<u64> = placed.into_iter().filter(|&id| id < 200).collect();
    assert_eq!(small[..4], [0, 100, 1, 101], "0 counts as 1");
}

/// Ten places in the queue.
fn small_queue(policy: PolicyConfig) -> Line {
    let config = BrainConfig {
        queue_requests_max: 10,
        policy,
        ..support::plain()
    };
    occupied(config, 1)
}

fn refused(line: &mut Line) -> Vec<u64> {
    let refused = std::mem::take(&mut line.refused);
    let all = refused.into_iter().map(|(id, why, hint)| {
        assert_eq!(why, RejectReason::QueueFull);
        assert!(hint >= BrainConfig::default().retry_after_min);
        id
    });
    all.collect()
}

#[test]
fn full_queue_takes_from_who_has_most_above_its_share() {
    let mut line = small_queue(shared(0).policy);
    for id in 0..12 {
        line.arrive(of(1, 2, request(id, 100, 1)));
    }
    assert_eq!(refused(&mut line), [10, 11], "its own newcomers");
    line.arrive(of(3, 1, request(30, 5_000, 1)));
    assert_eq!(
        refused(&mut line),
        [30],
        "it would have more than the flood"
    );
    line.arrive(of(2, 1, request(20, 300, 1)));
    assert_eq!(refused(&mut line), [9], "the last one of the flood");
    // 900 by weight 2 are 450, less 100 / 2 for each; 300 + 100 would be 400.
    line.arrive(of(2, 1, request(21, 100, 1)));
    assert_eq!(refused(&mut line), [8]);
    line.arrive(of(2, 1, request(22, 1, 1)));
    assert_eq!(
        refused(&mut line),
        [22],
        "tenant 2 has more by its weight now"
    );
    assert_eq!(line.brain.status().evicted_total, 2);
    assert_eq!(line.brain.status().requests_waiting, 10);
    line.placed.clear();
    assert_eq!(line.drain().len(), 10);
}

#[test]
fn nobody_is_evicted_for_one_that_finds_no_room_all_the_same() {
    let config = BrainConfig {
        queue_tokens_max: 3_000,
        ..shared(0)
    };
    let mut line = occupied(config, 1);
    for id in 0..30 {
        line.arrive(of(1, 1, request(id, 100, 1)));
    }
    line.arrive(of(2, 1, request(100, 1_700, 1)));
    assert_eq!(
        refused(&mut line),
        [100],
        "17 would have to go, and 1,700 is more than their 1,300"
    );
    line.arrive(of(2, 1, request(101, 1_000, 1)));
    let gone: Vec<u64> = (20..30).collect();
    assert_eq!(refused(&mut line), gone);
}

#[test]
fn late_ones_make_room_for_one_in_time_of_the_same_tenant() {
    let policy = PolicyConfig {
        demote: true,
        ..PolicyConfig::plain()
    };
    let mut line = small_queue(policy);
    for id in 0..10 {
        line.arrive(request(id, 100, 1));
    }
    line.arrive(request(10, 100, 1));
    assert_eq!(refused(&mut line), [10], "nobody is late yet");
    line.wait(millis(5_000));
    line.arrive(request(11, 100, 1));
    assert_eq!(refused(&mut line), [9], "the last of those that are late");
    // It is the newcomer's turn, not its fate, that the brain tells of it.
    let newcomer = line.brain.explain(&[RequestId(11)]).decisions;
    assert!(
        !newcomer.iter().any(|one| one.chose == Chosen::Demote),
        "{newcomer:?}"
    );
    line.placed.clear();
    assert_eq!(line.drain()[..3], [11, 0, 1]);
}

#[test]
fn who_is_next_of_those_that_waited_too_long_makes_no_room() {
    let policy = PolicyConfig {
        demote: true,
        order: Order::Sjf,
        ..PolicyConfig::plain()
    };
    let (wait, late_max) = (policy.ttft, policy.late_max);
    let mut line = small_queue(policy);
    line.arrive(request(0, 150, 1));
    for id in 1..10 {
        line.arrive(request(id, 90, 1));
    }
    line.wait(wait.plus(late_max).plus(millis(1)));
    line.arrive(request(10, 50, 1));
    assert_eq!(refused(&mut line), [9], "0 is last of all, and the oldest");
}

#[test]
fn a_prompt_is_paid_once_however_often_it_is_computed() {
    let mut line = occupied(shared(0), 1);
    for (tenant, id, prompt) in [(1, 10, 100), (1, 11, 10), (2, 20, 250), (2, 21, 10)] {
        line.arrive(of(tenant, 1, request(id, prompt, 1)));
    }
    line.placed.clear();
    line.finish(1);
    for _ in 0..2 {
        let (seat, id) = line.running.pop_front().expect("it runs");
        assert_eq!(id, 10);
        let mut preempted = report(1, Role::Mixed);
        preempted.closed = vec![closed(seat.slot.0, CloseReason::Preempted)];
        line.tell(said(preempted));
    }
    // 100 of the one, then 250 of the other; three times 100 would be more.
    assert_eq!(line.drain(), [10, 10, 10, 20, 11, 21]);
}
