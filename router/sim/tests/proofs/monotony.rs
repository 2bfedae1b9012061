//! What must not do harm does none, in the mean over fixed seeds.

use dopd_core::units::Micros;
use dopd_sim::scenario::{Fault, FaultKind, Scenario};

use super::support::{all_finish, chat, mean, poisson, run, scenario, sojourns};

const SEEDS: [u64; 4] = [1, 2, 3, 4];

fn mean_of(name: &str, workers: usize, change: impl Fn(&mut Scenario)) -> f64 {
    let means = SEEDS.map(|seed| {
        let mut scenario = scenario(name, workers, poisson(300, 30.0, seed, chat));
        change(&mut scenario);
        let outcome = run(&scenario);
        all_finish(&outcome);
        mean(sojourns(&outcome))
    });
    means.iter().sum::<f64>() / SEEDS.len() as f64
}

#[test]
fn faster_workers_answer_sooner() {
    for name in ["dopd-2", "static-2:2", "agg-dyn", "pull-dyn", "hybrid-2"] {
        let [slow, plain, fast] = [1.25, 1.0, 0.8].map(|ratio| {
            mean_of(name, 4, |scenario| {
                for worker in &mut scenario.fleet {
                    worker.slowness_ratio = ratio;
                }
            })
        });
        assert!(
            slow > plain && plain > fast,
            "{name}: {slow} {plain} {fast}"
        );
    }
}

#[test]
fn a_straggler_does_harm_and_slowing_down_late_does_less() {
    let slow_from = |at: u64| {
        mean_of("dopd-2", 4, |scenario| {
            scenario.faults = vec![Fault {
                at: Micros::from_millis(at),
                worker: 3,
                kind: FaultKind::Slows { ratio: 3.0 },
            }];
        })
    };
    let (early, late, never) = (slow_from(0), slow_from(5_000), slow_from(3_600_000));
    assert!(early > late && late > never, "{early} {late} {never}");
}

#[test]
fn a_dearer_mixed_step_is_never_cheaper() {
    let with = |penalty: f64| {
        mean_of("agg-dyn", 4, |scenario| {
            for worker in &mut scenario.fleet {
                worker.timings.mixed_penalty_ratio = penalty;
            }
        })
    };
    let (none, some, more) = (with(0.0), with(0.2), with(0.4));
    assert!(none < some && some < more, "{none} {some} {more}");
}
