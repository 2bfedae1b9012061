//! One target under libFuzzer, named by `DOPD_FUZZ_TARGET`; see `make fuzz`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    use std::sync::OnceLock;
    static TARGET: OnceLock<Option<dopd_fuzz::Target>> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("DOPD_FUZZ_TARGET").unwrap_or_default();
        let named = dopd_fuzz::TARGETS.iter().find(|(known, _)| *known == name);
        named.map(|(_, target)| *target)
    });
    assert!(target.is_some(), "DOPD_FUZZ_TARGET names no target");
    if let Some(target) = target {
        target(data);
    }
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    // Without libFuzzer there is nothing to drive the targets: `cargo test` does that.
    std::process::ExitCode::from(2)
}
