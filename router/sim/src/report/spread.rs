//! Mean and quantiles.

use serde::{Deserialize, Serialize};

/// Of some values; all 0 if there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % are not above.
    pub p90: f64,
    /// 99 % are not above.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of finite values in any order.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        Self {
            count: count as u64,
            mean: if count > 0 {
                values.iter().sum::<f64>() / count as f64
            } else {
                0.0
            },
            p50: quantile(&values, 0.5),
            p90: quantile(&values, 0.9),
            p99: quantile(&values, 0.99),
            max: values.last().copied().unwrap_or(0.0),
        }
    }
}

/// Of sorted values, with a straight line between neighbours (NumPy's default); 0 of nothing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and the number of values"
)]
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = part.clamp(0.0, 1.0) * last as f64;
    let low = libm::floor(place) as usize;
    let below = sorted[low];
    let above = sorted[(low + 1).min(last)];
    below + (above - below) * (place - low as f64)
}
