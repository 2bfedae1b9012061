//! Names of streams and of the seats within a stream.

/// Names one stream: the answer of one sequence, on the front thread that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Index of the owning front thread.
    pub thread: u16,
    /// Place in that thread's table.
    pub index: u32,
    /// Tells successive streams of one place apart.
    pub generation: u32,
}

/// Number of a seat within its stream: every Open gets the next one, from 1.
///
/// Seats are named by session and slot elsewhere; here a slot may be used again by the same
/// sequence, and a late token of its first use must not count for the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Life(pub u32);
