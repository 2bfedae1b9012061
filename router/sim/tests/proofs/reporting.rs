//! Tokens told in bulk give the outcome of tokens told step by step, within bounds.

use dopd_core::units::Micros;
use dopd_sim::{Options, outcome::Outcome, report::Figures, scenario::Scenario};

use super::support::{all_finish, chat, is_near, mean, poisson, scenario, sojourns, told};

/// Outcomes with the default, and with every step told.
fn both(scenario: &Scenario) -> (Outcome, Outcome) {
    let every_step = Options {
        tell_every: Micros(0),
        ..Options::default()
    };
    let bulk = told(scenario, Options::default());
    let single = told(scenario, every_step);
    all_finish(&bulk);
    all_finish(&single);
    assert!(single.events > bulk.events);
    (bulk, single)
}

/// Attainment within a point, mean sojourn within 1 %, time to first token within 5 %.
#[test]
fn bulk_reports_change_little() {
    for name in ["dopd-2", "static-2:2", "agg-dyn"] {
        let scenario = scenario(name, 4, poisson(1_500, 45.0, 8, chat));
        let (bulk, single) = both(&scenario);
        is_near(mean(sojourns(&bulk)), mean(sojourns(&single)), 1.0);
        let [bulk, single] = [bulk, single].map(|outcome| Figures::of(&outcome, &scenario.slo));
        is_near(bulk.ttft_ms.mean, single.ttft_ms.mean, 5.0);
        let off = (bulk.attainment.overall - single.attainment.overall).abs();
        assert!(off <= 0.01, "{name}: {off}");
    }
}

/// Where nothing is decided while tokens are made, both are the same to the microsecond.
#[test]
fn bulk_reports_change_nothing_where_nothing_is_decided() {
    let scenario = scenario("static-1:1", 2, poisson(100, 2.0, 8, chat));
    let (bulk, single) = both(&scenario);
    assert_eq!(bulk.requests, single.requests);
}
