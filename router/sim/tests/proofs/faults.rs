//! Workers die, come back and slow down at any moment: nothing is lost.

use dopd_core::units::Micros;
use dopd_sim::{
    outcome::Ending,
    scenario::{Fault, FaultKind, Scenario},
};
use proptest::prelude::*;

use super::support::{all_finish, chat, ends_clean, poisson, run, scenario};

fn fault() -> impl Strategy<Value = Fault> {
    let kind = prop_oneof![
        3 => (1_u64..3_000).prop_map(|ms| FaultKind::Dies { back_after: Some(Micros::from_millis(ms)) }),
        1 => (1.0..8.0).prop_map(|ratio| FaultKind::Slows { ratio }),
    ];
    (0_u64..4_000_000, 0_usize..4, kind).prop_map(|(at, worker, kind)| Fault {
        at: Micros(at),
        worker,
        kind,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nothing_is_lost(
        mut faults in prop::collection::vec(fault(), 0..6),
        seed in 0_u64..1_000,
        name in prop::sample::select(vec!["dopd-2", "dopd-1", "static-2:2", "agg-dyn", "hybrid-2"]),
        pages in prop::sample::select(vec![25_000_u32, 1_200]),
    ) {
        faults.sort_by_key(|fault| fault.at);
        ends_clean(&run(&troubled(name, seed, pages, faults)));
    }
}

/// Some chats for four workers.
fn troubled(name: &str, seed: u64, pages: u32, faults: Vec<Fault>) -> Scenario {
    let requests = poisson(80, 25.0, seed, |random| {
        let (prompt, output) = chat(random);
        (prompt.min(6_000), output)
    });
    let mut scenario = scenario(name, 4, requests);
    for worker in &mut scenario.fleet {
        worker.pages_total = pages;
    }
    scenario.faults = faults;
    scenario
}

/// Where nobody takes it over it decodes on at its source. What was due of its first stay there,
/// its last token and its next page, was due of the second as well: 15 pages were left over.
#[test]
fn what_is_not_moved_after_all_grows_and_ends_once() {
    let dies = |at, worker, back_after_ms| Fault {
        at: Micros(at),
        worker,
        kind: FaultKind::Dies {
            back_after: Some(Micros::from_millis(back_after_ms)),
        },
    };
    let faults = vec![dies(1_081_692, 0, 2_530), dies(1_500_838, 3, 2_187)];
    ends_clean(&run(&troubled("hybrid-2", 507, 1_200, faults)));
}

/// One death at each of many moments of one request's life: it is answered all the same.
#[test]
fn a_death_at_every_moment_costs_no_answer() {
    for worker in 0..2 {
        for step in 0..150 {
            let requests = vec![super::support::request(0, 2_000, 30)];
            let mut scenario = scenario("static-1:1", 2, requests);
            scenario.faults = vec![Fault {
                at: Micros(step * 2_500),
                worker,
                kind: FaultKind::Dies {
                    back_after: Some(Micros::from_millis(50)),
                },
            }];
            let outcome = run(&scenario);
            all_finish(&outcome);
            assert!(outcome.requests[0].replays <= 1);
        }
    }
}

#[test]
fn two_deaths_under_a_request_end_it_and_no_other() {
    let mut requests = vec![super::support::request(0, 60_000, 5)];
    requests.extend((0..20).map(|at| super::support::request(1_000_000 + at * 10_000, 100, 5)));
    let mut scenario = scenario("dopd", 1, requests);
    let back_after = Some(Micros::from_millis(100));
    let dies = |at| Fault {
        at: Micros::from_millis(at),
        worker: 0,
        kind: FaultKind::Dies { back_after },
    };
    scenario.faults = vec![dies(500), dies(900)];
    let outcome = run(&scenario);
    ends_clean(&outcome);
    let rejected = outcome
        .requests
        .iter()
        .filter(|one| one.ending == Ending::Rejected);
    assert_eq!(rejected.count(), 1);
    assert_eq!(outcome.requests[0].ending, Ending::Rejected);
}
