//! Random numbers from a seed: SplitMix64, enough to spread retries.

use crate::units::Micros;

#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A duration from `low` to `high`, both possible; `low` if `high` is not above it.
    pub(super) fn between(&mut self, low: Micros, high: Micros) -> Micros {
        let span = high.since(low).0.saturating_add(1);
        Micros(low.0.saturating_add(self.next() % span))
    }
}
