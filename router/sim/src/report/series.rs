//! Figures over time, for plots.

use serde::{Deserialize, Serialize};

use super::{Judged, ratio, spread::Spread};

/// Most points of a series.
pub const BUCKETS_MAX: u64 = 120;
/// Shortest time of a point, in microseconds: below, chance is all that shows.
const BUCKET_MIN_US: u64 = 1_000_000;

/// What came within one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its start in seconds.
    pub start_s: f64,
    /// Requests that came, per second.
    pub rate: f64,
    /// Those that met both targets, per second.
    pub good_rate: f64,
    /// Their share; 0 where nothing came.
    pub attainment: f64,
    /// Median of time to first token in ms.
    pub ttft_p50_ms: f64,
    /// 90 % were not above.
    pub ttft_p90_ms: f64,
    /// 90 % were not above in time per token.
    pub tpot_p90_ms: f64,
}

/// Equal stretches from 0 to the last arrival.
pub(super) fn of(judged: &[Judged<'_>]) -> Vec<Bucket> {
    let Some(last) = judged.iter().map(|one| one.request.arrival.0).max() else {
        return Vec::new();
    };
    let width_us = (last / BUCKETS_MAX + 1).max(BUCKET_MIN_US);
    let count = usize::try_from(last / width_us + 1).unwrap_or(1);
    let mut parts: Vec<Vec<&Judged<'_>>> = vec![Vec::new(); count];
    for one in judged {
        let at = usize::try_from(one.request.arrival.0 / width_us).unwrap_or(0);
        if let Some(part) = parts.get_mut(at) {
            part.push(one);
        }
    }
    let seconds = width_us as f64 / 1e6;
    let mut start_s = -seconds;
    parts
        .into_iter()
        .map(|part| {
            start_s += seconds;
            let ttft = Spread::of(part.iter().filter_map(|one| one.ttft_ms).collect());
            let tpot = Spread::of(part.iter().filter_map(|one| one.tpot_ms).collect());
            let good = part.iter().filter(|one| one.is_good()).count();
            Bucket {
                start_s,
                rate: part.len() as f64 / seconds,
                good_rate: good as f64 / seconds,
                attainment: ratio(good as f64, part.len() as f64),
                ttft_p50_ms: ttft.p50,
                ttft_p90_ms: ttft.p90,
                tpot_p90_ms: tpot.p90,
            }
        })
        .collect()
}
