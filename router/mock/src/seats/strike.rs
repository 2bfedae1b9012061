//! Marked sequences in a step: which faults their tokens call for (`faults`).

use super::{Batch, Seat, Seats, batch::Row};
use crate::faults::{Fault, FaultKind};

impl Seats {
    /// Looks for markers that end in this step. Rows are told what goes wrong with them, seats
    /// whether they are slow from now on; returned is what concerns the whole step.
    pub fn strike(&mut self, batch: &mut Batch, faults: &[Fault]) -> Vec<FaultKind> {
        let mut struck = Vec::new();
        for row in &mut batch.rows {
            let Some(seat) = self.seat_mut(row.slot) else {
                continue;
            };
            for fault in faults {
                if !is_due(seat, *row, fault) {
                    continue;
                }
                match fault.kind {
                    FaultKind::Raise | FaultKind::Lie | FaultKind::Wrong => {
                        row.spoil = Some(fault.kind);
                    }
                    FaultKind::Slow => seat.is_slow = true,
                    FaultKind::Exit | FaultKind::Hang => struck.push(fault.kind),
                }
            }
            if seat.is_slow && !struck.contains(&FaultKind::Slow) {
                struck.push(FaultKind::Slow);
            }
        }
        struck
    }
}

/// The marker's last token is among those of the row.
fn is_due(seat: &Seat, row: Row, fault: &Fault) -> bool {
    let before = super::types::count(fault.len().saturating_sub(1));
    let start = seat.computed.saturating_sub(before);
    let tokens: Vec<Option<u32>> = (start..seat.computed + row.tokens)
        .map(|position| seat.token(position))
        .collect();
    fault.is_in(&tokens)
}
