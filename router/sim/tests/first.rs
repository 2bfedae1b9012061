//! One request through a small fleet, by hand.

use std::{ops::ControlFlow, sync::Arc};

use dopd_core::{
    brain::BrainConfig, cost::Timings, fleet::Role, policy::PolicyConfig, units::Micros,
};
use dopd_sim::{
    outcome::Ending,
    run,
    scenario::{Scenario, SloRule, Trace, TraceRequest, WorkerSpec},
};

fn spec(role: Role) -> WorkerSpec {
    WorkerSpec {
        role,
        timings: Timings::h100_8b(),
        told: None,
        slowness_ratio: 1.0,
        page_tokens: 16,
        pages_total: 25_000,
        kv_bytes_per_token: 131_072,
        num_seqs_max: 512,
        batch_tokens_max: 8_192,
        model_len_max: 131_072,
        has_prefix_cache: false,
    }
}

fn scenario(fleet: Vec<WorkerSpec>, requests: Vec<TraceRequest>) -> Scenario {
    Scenario {
        trace: Arc::new(Trace {
            name: "by hand".to_owned(),
            block_tokens: 0,
            requests,
        }),
        fleet,
        brain: BrainConfig {
            policy: PolicyConfig::plain(),
            ..BrainConfig::default()
        },
        slo: SloRule {
            ttft: Micros::from_millis(500),
            ttft_prefill_ratio: 3.0,
            tpot: Micros::from_millis(30),
        },
        faults: Vec::new(),
        network: Micros(100),
        max_tokens: 2_048,
        seed: 1,
    }
}

#[test]
fn one_request_takes_its_prefill_its_hand_off_and_its_steps() {
    let request = TraceRequest {
        arrival: Micros(1_000),
        prompt_tokens: 1_000,
        output_tokens: 101,
        tenant: 0,
        priority: 0,
        key: None,
        blocks: Arc::from([]),
    };
    let scenario = scenario(vec![spec(Role::Prefill), spec(Role::Decode)], vec![request]);
    let outcome = run(&scenario, &mut |_| ControlFlow::Continue(())).unwrap();
    let seen = outcome.requests[0];
    assert_eq!(
        (seen.ending, outcome.breaks, outcome.pages_left),
        (Ending::Finished, 0, 0)
    );
    let prefill = scenario.fleet[0]
        .timings
        .prefill_us(dopd_core::units::Tokens(1_000))
        .0;
    // Open at the decode worker, back, Open at the prefill worker, the prompt, back.
    assert_eq!(seen.first.unwrap().0, 1_000 + 4 * 100 + prefill);
    assert!(!seen.is_stolen && !seen.is_kept);
}
