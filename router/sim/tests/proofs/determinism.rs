//! The same scenario, the same bytes: twice, and in another process.

use std::process::Command;

use dopd_core::units::Micros;
use dopd_sim::scenario::{Fault, FaultKind};

use super::support::{chat, poisson, run, scenario};

/// An outcome as one number.
fn digest() -> u64 {
    let mut scenario = scenario("dopd-2", 6, poisson(800, 60.0, 21, chat));
    scenario.faults = vec![Fault {
        at: Micros::from_millis(4_000),
        worker: 5,
        kind: FaultKind::Dies {
            back_after: Some(Micros::from_millis(2_000)),
        },
    }];
    let outcome = serde_json::to_string(&run(&scenario)).unwrap_or_default();
    assert!(outcome.len() > 10_000, "an outcome is text");
    outcome.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn the_same_bytes_twice() {
    assert_eq!(digest(), digest());
}

#[test]
#[ignore = "run by the_same_bytes_in_another_process"]
fn child() {
    println!("digest {}", digest());
}

#[test]
fn the_same_bytes_in_another_process() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["determinism::child", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let words = String::from_utf8(child.stdout).unwrap();
    let wanted = format!("digest {}", digest());
    assert!(words.contains(&wanted), "{wanted} is not in {words}");
}

#[test]
fn another_seed_draws_other_waits_only() {
    let mut scenario = scenario("static-2:2", 4, poisson(200, 30.0, 4, chat));
    let before = run(&scenario);
    scenario.seed = 99;
    // Chance is drawn after refusals and failures; there are none.
    assert_eq!(run(&scenario), before);
}
