//! Quantities with their unit in the type.

use serde::{Deserialize, Serialize};

/// A point in time or a duration in microseconds, on whatever clock the caller of the brain uses.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Micros(pub u64);

impl Micros {
    /// From milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// Later by `other`; stops at the end of time instead of wrapping.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Time since `earlier`, or zero.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// So many times as long, rounded down: nothing for a ratio below 0 or NaN, the end of time for
    /// one that is too large.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast stops at the ends of u64, and takes NaN for 0"
    )]
    pub const fn times(self, ratio: f64) -> Self {
        Self((self.0 as f64 * ratio) as u64)
    }
}

/// A number of tokens.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Tokens(pub u32);

impl Tokens {
    /// Sum, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, at least zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Pages of `page_size` tokens that hold this many tokens. `page_size` 0 counts as 1.
    pub const fn pages(self, page_size: u32) -> Pages {
        Pages(self.0.div_ceil(if page_size == 0 { 1 } else { page_size }))
    }
}

/// A number of KV pages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Pages(pub u32);

impl Pages {
    /// Sum, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, at least zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}
