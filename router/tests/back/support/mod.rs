//! A router without fronts, scripted workers, sinks that record.
pub(crate) mod router;
pub(crate) mod sink;
pub(crate) mod worker;

use std::time::Duration;

/// Longest wait for anything; only a broken router reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
