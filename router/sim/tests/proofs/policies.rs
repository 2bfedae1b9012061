//! Named policies: each ablation turns off what it says, and all of them end their work.

use std::collections::BTreeSet;

use dopd_sim::policies::{RULES, named};

use super::support::{all_finish, chat, poisson, run, scenario};

#[test]
fn every_rule_off_is_another_policy_of_the_same_fleet() {
    let (policy, roles) = named("dopd-2", 8).unwrap();
    let mut seen = BTreeSet::new();
    for (rule, _, _) in RULES {
        let (without, same) = named(&format!("dopd-2-no-{rule}"), 8).unwrap();
        assert_ne!(without, policy, "{rule}");
        assert_eq!(same, roles, "{rule}");
        assert!(
            seen.insert(format!("{without:?}")),
            "{rule} is another rule as well"
        );
    }
    assert_eq!(named("dopd-2-no-luck", 8), None);
    assert_eq!(
        named("static-4:4-no-gate", 8).map(|(policy, _)| policy.gate),
        Some(false)
    );
}

#[test]
fn without_any_one_rule_nothing_is_lost() {
    for (rule, _, _) in RULES {
        let name = format!("dopd-2-no-{rule}");
        let outcome = run(&scenario(&name, 4, poisson(200, 40.0, 9, chat)));
        all_finish(&outcome);
    }
}
