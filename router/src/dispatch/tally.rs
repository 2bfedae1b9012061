//! How hand-offs ended: counted where the brain's decisions and the workers' reports pass.

use dopd_core::event::CloseReason;

/// How a hand-off ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The sequence went on at its destination.
    Arrived,
    /// The transfer failed.
    Lost,
    /// The destination did not take it.
    Refused,
    /// The destination's session ended.
    WorkerLost,
    /// Not needed any more, or too slow: the brain gave it up.
    Withdrawn,
}

impl Outcome {
    const ALL: [Self; 5] = [
        Self::Arrived,
        Self::Lost,
        Self::Refused,
        Self::WorkerLost,
        Self::Withdrawn,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::WorkerLost => "worker_lost",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// Of an import seat that was closed before it was switched to.
    pub(super) const fn of(why: CloseReason) -> Self {
        match why {
            CloseReason::Refused => Self::Refused,
            CloseReason::Lost | CloseReason::Error | CloseReason::Preempted => Self::Lost,
            CloseReason::Asked | CloseReason::Stop | CloseReason::Length => Self::Withdrawn,
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Tally([u64; Outcome::ALL.len()]);

impl Tally {
    pub(super) fn count(&mut self, outcome: Outcome) {
        if let Some(count) = self.0.get_mut(outcome as usize) {
            *count += 1;
        }
    }

    /// Every outcome with its count.
    pub(super) fn by_outcome(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Outcome::ALL.into_iter().map(Outcome::word).zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_row() {
        let mut tally = Tally::default();
        for (times, outcome) in (1..).zip(Outcome::ALL) {
            (0..times).for_each(|_| tally.count(outcome));
        }
        let rows: Vec<(&str, u64)> = tally.by_outcome().collect();
        let expected = [
            ("arrived", 1),
            ("lost", 2),
            ("refused", 3),
            ("worker_lost", 4),
            ("withdrawn", 5),
        ];
        assert_eq!(rows, expected);
    }
}
