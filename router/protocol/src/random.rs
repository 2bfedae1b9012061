//! Random numbers of a simulation: all of them come from its seed.

use dopd_mock::model::mix;

/// A stream of numbers; equal seeds give equal streams.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number from `low` to `high`, both included; `low` if there is none.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.checked_sub(low) {
            Some(span) => low + self.any() % (span + 1),
            None => low,
        }
    }

    /// An index below `length`; 0 if there is none.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        let last = (length as u64).saturating_sub(1);
        usize::try_from(self.between(0, last)).unwrap_or(0)
    }

    /// True so often in a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.between(0, 99) < percent
    }

    /// Mostly short, sometimes long: microseconds of a way through a network.
    pub(crate) fn delay_us(&mut self, usual_us: u64) -> u64 {
        let most = match self.between(0, 99) {
            0..=89 => usual_us,
            90..=98 => usual_us * 8,
            _ => usual_us * 100,
        };
        self.between(1, most.max(1))
    }
}
