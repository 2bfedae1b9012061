//! How long a session may be silent.
//!
//! Counted in ticks of the report interval, not in clock time: if the front thread itself was held
//! up, the ticks that it missed do not count against its workers.

/// Ticks without a report after which a worker is ejected.
///
/// At 200 ms: the fourth tick after a report comes 600 to 800 ms after it, so a process that
/// freezes is ejected within 800 ms of its last report, whenever that was; one that freezes just
/// before a report was heard up to 200 ms ago and is ejected sooner. A pause of 300 ms is at most
/// 500 ms without a report, which is never enough.
pub(super) const SUSPECT_TICKS: u32 = 4;

/// What a tick says of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nothing new.
    Short,
    /// Silent for so long that it is ejected; said once per silence.
    Suspect,
    /// Its session is over.
    Over,
}

/// The silence of one session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    silent: u32,
    limit: u32,
}

impl Lease {
    /// A lease of `lease_ms`, ticked every `interval_ms`.
    pub(super) fn new(lease_ms: u32, interval_ms: u32) -> Self {
        Self {
            silent: 0,
            // At least one tick more than it takes to be suspected.
            limit: lease_ms.div_ceil(interval_ms.max(1)).max(SUSPECT_TICKS + 1),
        }
    }

    /// Something was heard.
    pub(super) fn heard(&mut self) {
        self.silent = 0;
    }

    /// Whether the worker was heard lately enough to judge what it does.
    pub(super) const fn is_fresh(self) -> bool {
        self.silent < SUSPECT_TICKS
    }

    /// An interval passed.
    pub(super) fn tick(&mut self) -> Silence {
        self.silent = self.silent.saturating_add(1);
        if self.silent >= self.limit {
            Silence::Over
        } else if self.silent == SUSPECT_TICKS {
            Silence::Suspect
        } else {
            Silence::Short
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspected_once_then_lost() {
        let mut lease = Lease::new(3_000, 200);
        let said: Vec<Silence> = (0..15).map(|_| lease.tick()).collect();
        assert_eq!(said[3], Silence::Suspect);
        assert_eq!(said[14], Silence::Over);
        assert_eq!(said.iter().filter(|h| **h == Silence::Short).count(), 13);
    }

    /// Whatever the phase of ticks and reports: ejected 400 to 800 ms after the freeze, and not at
    /// all by a pause of 300 ms.
    #[test]
    fn a_freeze_is_seen_within_a_second_and_a_pause_is_not() {
        const REPORT_MS: u32 = 200;
        /// When the lease says Suspect, if reports come every 200 ms but from `freeze` to `wake`.
        fn ejected_at(first_report: u32, freeze: u32, wake: u32) -> Option<u32> {
            let mut lease = Lease::new(3_000, REPORT_MS);
            (0..5_000).find(|ms| {
                let is_due = ms % REPORT_MS == first_report && !(freeze..wake).contains(ms);
                if is_due || *ms == wake {
                    lease.heard();
                }
                ms % REPORT_MS == 0 && lease.tick() == Silence::Suspect
            })
        }
        for first_report in (0..REPORT_MS).step_by(10) {
            for freeze in (1_000..1_000 + REPORT_MS).step_by(10) {
                let at = ejected_at(first_report, freeze, 4_000).unwrap_or(u32::MAX);
                assert!((400..=800).contains(&(at - freeze)), "{at} of {freeze}");
                assert_eq!(ejected_at(first_report, freeze, freeze + 300), None);
            }
        }
    }

    #[test]
    fn hearing_starts_it_anew() {
        let mut lease = Lease::new(3_000, 200);
        for _ in 0..14 {
            lease.tick();
        }
        lease.heard();
        assert_eq!((0..3).map(|_| lease.tick()).last(), Some(Silence::Short));
        assert_eq!(lease.tick(), Silence::Suspect);
    }

    #[test]
    fn a_short_lease_still_suspects_first() {
        let mut lease = Lease::new(10, 200);
        let said: Vec<Silence> = (0..5).map(|_| lease.tick()).collect();
        assert_eq!(said[3], Silence::Suspect);
        assert_eq!(said[4], Silence::Over);
    }
}
