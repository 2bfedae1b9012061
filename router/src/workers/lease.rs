//! How long a session may be silent.
//!
//! Counted in ticks of the report interval, not in clock time: if the front thread itself was held
//! up, the ticks that it missed do not count against its workers.

/// Ticks without a report after which a worker gets no new work.
const SUSPECT_TICKS: u32 = 4;

/// What a tick says of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing new.
    Same,
    /// Silent for so long that it gets no new work; said once per silence.
    Suspect,
    /// Silent for so long that its session is over.
    Lost,
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

    /// An interval passed.
    pub(super) fn tick(&mut self) -> Health {
        self.silent = self.silent.saturating_add(1);
        if self.silent >= self.limit {
            Health::Lost
        } else if self.silent == SUSPECT_TICKS {
            Health::Suspect
        } else {
            Health::Same
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspected_once_then_lost() {
        let mut lease = Lease::new(3_000, 200);
        let said: Vec<Health> = (0..15).map(|_| lease.tick()).collect();
        assert_eq!(said[3], Health::Suspect);
        assert_eq!(said[14], Health::Lost);
        assert_eq!(said.iter().filter(|h| **h == Health::Same).count(), 13);
    }

    #[test]
    fn hearing_starts_it_anew() {
        let mut lease = Lease::new(3_000, 200);
        for _ in 0..14 {
            lease.tick();
        }
        lease.heard();
        assert_eq!((0..3).map(|_| lease.tick()).last(), Some(Health::Same));
        assert_eq!(lease.tick(), Health::Suspect);
    }

    #[test]
    fn a_short_lease_still_suspects_first() {
        let mut lease = Lease::new(10, 200);
        let said: Vec<Health> = (0..5).map(|_| lease.tick()).collect();
        assert_eq!(said[3], Health::Suspect);
        assert_eq!(said[4], Health::Lost);
    }
}
