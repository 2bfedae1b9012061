//! The time model: figures by hand, orders that must hold, files that must be refused.

use dopd_core::{
    cost::{StepShape, Timings, TimingsError, VALUE_MAX},
    units::{Micros, Tokens},
};
use proptest::prelude::*;

const NOTHING: StepShape<'static> = StepShape {
    prefill: &[],
    decode_seqs: 0,
    decode_context_sum: 0,
};

#[test]
fn step_is_the_sum_of_its_parts() {
    let timings = Timings::h100_8b();
    // 4000 + max(5200 + 6*1000, 22.5*1000) + .83e-3 * (1000*500 + 1000*1001/2)
    let prefill = StepShape {
        prefill: &[(1_000, 500)],
        ..NOTHING
    };
    assert_eq!(timings.step_us(prefill), 4_000 + 22_500 + 830);
    // 1600 + max(5200 + 6*10, 22.5*10) + 4.4e-2 * 20000 + 20*10
    let decode = StepShape {
        decode_seqs: 10,
        decode_context_sum: 20_000,
        ..NOTHING
    };
    assert_eq!(timings.step_us(decode), 1_600 + 5_260 + 880 + 200);
    // Both: (4000 + 22.5*1010 + 830 + 880 + 200) and a fifth more.
    let mixed = StepShape {
        prefill: &[(1_000, 500)],
        ..decode
    };
    assert_eq!(timings.step_us(mixed), 34_362);
    assert_eq!(timings.step_us(NOTHING), 0);
}

#[test]
fn figures_are_near_those_of_the_study() {
    let near = |tokens: u32, expected_ms: u64| {
        let got = Timings::h100_8b().prefill_us(Tokens(tokens)).0 / 1_000;
        assert!(
            got.abs_diff(expected_ms) <= expected_ms / 20,
            "{tokens}: {got} ms"
        );
    };
    near(1_100, 30);
    near(4_200, 105);
    near(8_200, 218);
}

#[test]
fn handoff_is_fixed_time_plus_bytes() {
    assert_eq!(
        Timings::h100_8b().handoff_us(1_000_000_000),
        Micros(2_000 + 10_000)
    );
    assert_eq!(Timings::instant().handoff_us(u64::MAX), Micros(0));
    assert_eq!(Timings::instant().prefill_us(Tokens(u32::MAX)), Micros(0));
}

#[test]
fn builtin_calibrations_survive_json() {
    for name in Timings::BUILTIN_NAMES {
        let timings = Timings::builtin(name).expect("a built-in name");
        assert_eq!(timings.name, name);
        let json = timings.to_json().expect("valid");
        assert_eq!(Timings::from_json(&json).expect("its own JSON"), timings);
    }
    assert_eq!(Timings::builtin("h200"), None);
}

#[test]
fn bad_calibrations_are_refused_by_name() {
    let good = Timings::h100_8b().to_json().expect("valid");
    for value in ["-1", "1e300"] {
        let bad = good.replace("5200.0", value);
        let error = Timings::from_json(&bad).expect_err(value);
        assert!(
            matches!(
                error,
                TimingsError::Value {
                    field: "weights_us",
                    ..
                }
            ),
            "{error}"
        );
    }
    let nan = Timings {
        mixed_penalty_ratio: f64::NAN,
        ..Timings::instant()
    };
    assert!(nan.check().is_err());
    for bad in [
        "",
        "{}",
        "null",
        &good.replace("weights_us", "weight_us"),
        &" ".repeat(20_000),
    ] {
        assert!(Timings::from_json(bad).is_err(), "{bad}");
    }
    let shown = Timings::from_json(&good.replace("5200.0", "-1")).expect_err("negative");
    assert_eq!(
        shown.to_string(),
        "timings `h100-8b`: weights_us is -1, must be finite and between 0 and 1e15"
    );
}

fn any_timings() -> impl Strategy<Value = Timings> {
    let value = || prop_oneof![Just(0.0), 0.0..1e4_f64, Just(VALUE_MAX)];
    prop::array::uniform11(value()).prop_map(|v| Timings {
        name: "any".to_owned(),
        step_prefill_us: v[0],
        step_decode_us: v[1],
        weights_us: v[2],
        memory_us_per_token: v[3],
        compute_us_per_token: v[4],
        attention_us_per_pair: v[5],
        context_us_per_token: v[6],
        batch_us_per_seq: v[7],
        mixed_penalty_ratio: v[8],
        handoff_bytes_per_s: v[9],
        handoff_fixed_us: v[10],
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// More work never takes less time, and no value that passes the check makes a step overflow.
    #[test]
    fn more_work_takes_no_less_time(
        timings in any_timings(), new in any::<u32>(), context in any::<u32>(),
        seqs in any::<u32>(), sum in any::<u64>(),
    ) {
        prop_assert!(timings.check().is_ok());
        let time = |new: u32, seqs, sum| timings.step_us(StepShape {
            prefill: &[(new, context)], decode_seqs: seqs, decode_context_sum: sum,
        });
        prop_assert!(time(new, seqs, sum) <= 1 << 53);
        prop_assert!(time(new / 2, seqs, 0) <= time(new, seqs, 0) || new / 2 == 0);
        prop_assert!(time(new, 0, 0) <= time(new, seqs, sum));
        prop_assert!(timings.handoff_us(sum / 2) <= timings.handoff_us(sum));
    }

    #[test]
    fn json_keeps_every_bit(timings in any_timings()) {
        let json = timings.to_json();
        prop_assert!(json.is_ok());
        let read = Timings::from_json(&json.unwrap_or_default());
        prop_assert_eq!(read.ok(), Some(timings));
    }
}
