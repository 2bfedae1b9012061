//! Faults that tests ask for: each at its marker, and at nobody else.

use dopd_core::units::Micros;
use dopd_mock::faults::{Fault, FaultKind, LIE_TOKEN};
use dopd_router::wire::worker::{CloseReason, Report};

use crate::bench::{Bench, SLOT, compute, prompt};

/// The bench's prompt in chunks of 16, then three tokens; whole answers are 9 long.
fn run(fault: &str) -> (Vec<Report>, Vec<FaultKind>) {
    let faults = [fault.parse::<Fault>().expect("a fault")];
    let mut bench = Bench::empty();
    bench.command(compute(SLOT, 9));
    let (mut reports, mut struck) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let Some(mut batch) = bench.seats.begin_step(Micros(0), 1) else {
            break;
        };
        struck.extend(bench.seats.strike(&mut batch, &faults));
        bench.seats.finish_step(Micros(0), &batch, 0);
        bench.seats.check().expect("invariants hold");
        reports.push(bench.seats.take_report(0).expect("session"));
    }
    (reports, struck)
}

fn tokens(reports: &[Report]) -> Vec<u32> {
    reports
        .iter()
        .flat_map(|report| report.tokens.clone())
        .collect()
}

/// Text of the prompt across the border of the first two chunks.
fn marker() -> String {
    let prompt = prompt(40);
    let bytes = prompt[14..18].iter().map(|token| token.to_le_bytes()[0]);
    String::from_utf8(bytes.collect()).expect("printable")
}

#[test]
fn a_row_that_is_told_to_fail_closes_alone() {
    let (reports, struck) = run(&format!("raise={}", marker()));
    assert_eq!(
        reports.len(),
        2,
        "in the second chunk, after which nothing is left"
    );
    let reasons: Vec<CloseReason> = reports[1].closed_reasons().collect();
    assert_eq!(reasons, [CloseReason::Error]);
    assert_eq!(struck, []);
}

#[test]
fn lies_and_wrong_tokens_come_once() {
    let right = tokens(&run("raise=never").0);
    assert_eq!(right.len(), 4, "{right:?}");
    // A marker in the answer: the draw after it goes wrong.
    let second = char::from_u32(right[0]).expect("printable");
    let first_pair = format!("{second}{}", char::from_u32(right[1]).expect("printable"));
    let wrong = tokens(&run(&format!("wrong={first_pair}")).0);
    assert_eq!(wrong[..2], right[..2]);
    assert_eq!(wrong[2], right[2] ^ 1);
    let lie = tokens(&run(&format!("lie={first_pair}")).0);
    assert_eq!(lie[2], LIE_TOKEN);
}

#[test]
fn what_befalls_the_process_is_told_to_its_loop() {
    let marker = marker();
    assert_eq!(run(&format!("exit={marker}")).1, [FaultKind::Exit]);
    assert_eq!(run(&format!("hang={marker}")).1, [FaultKind::Hang]);
    // Slow from the second chunk on.
    assert_eq!(run(&format!("slow={marker}")).1, [FaultKind::Slow; 5]);
}

#[test]
fn flags_are_read_or_refused() {
    for wrong in ["exit", "exit=", "=x", "fall=x", ""] {
        let why = wrong.parse::<Fault>().expect_err("refused");
        assert!(why.contains("KIND=MARKER"), "{why}");
    }
}
