//! One request through a small fleet, by hand.

use dopd_core::{fleet::Role, policy::PolicyConfig, units::Tokens};

use super::support::{all_finish, of, request, run, spec};

#[test]
fn one_request_takes_its_prefill_its_hand_off_and_its_steps() {
    let fleet = vec![spec(Role::Prefill), spec(Role::Decode)];
    let scenario = of(
        PolicyConfig::plain(),
        fleet,
        vec![request(1_000, 1_000, 101)],
    );
    let outcome = run(&scenario);
    all_finish(&outcome);
    let seen = outcome.requests[0];
    assert!(!seen.is_stolen && !seen.is_kept);
    let timings = &scenario.fleet[0].timings;
    let prefill = timings.prefill_us(Tokens(1_000)).0;
    // Open at the decode worker, back, Open at the prefill worker, the prompt, back.
    let first = 1_000 + 4 * 100 + prefill;
    assert_eq!(seen.first.unwrap().0, first);
    // 1,000 tokens travel, then 100 steps, then the last report.
    let handoff = timings.handoff_us(1_000 * 131_072).0;
    let steps: u64 = (0..100)
        .map(|step| {
            timings.step_us(dopd_core::cost::StepShape {
                prefill: &[],
                decode_seqs: 1,
                decode_context_sum: 1_000 + step,
            })
        })
        .sum();
    assert_eq!(seen.end.unwrap().0, first + handoff + steps);
    assert_eq!(outcome.workers[0].handoff_bytes, 1_000 * 131_072);
}
