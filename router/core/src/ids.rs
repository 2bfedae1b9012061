//! Names of things. Ids are newtypes, so that an index cannot be taken for a count or for another
//! id.

use serde::{Deserialize, Serialize};

/// One request of a client, minted by the router; never reused by one router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One choice of a request: what is scheduled. `n` choices are `n` sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SequenceId {
    /// The request it belongs to.
    pub request: RequestId,
    /// 0-based number of the choice.
    pub choice: u8,
}

/// One attachment of a worker: lives exactly as long as its stream. Never reused by one router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Small number chosen by the router that names a seat within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotId(pub u32);

/// A request's place at a worker: session and slot together name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeatId {
    /// Whose seat.
    pub session: SessionId,
    /// Which seat.
    pub slot: SlotId,
}
