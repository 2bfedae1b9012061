//! How long a step takes (filled in below).
use serde::{Deserialize, Serialize};

/// Step times of one model on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Name of the calibration.
    pub name: String,
}
