//! Random names and seeds, from the operating system.

use std::fmt::Write as _;

use crate::error::{Error, Reason};

/// 128 random bits in hex: unique without coordination, and not to be guessed.
pub(super) fn request_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(no_entropy)?;
    let mut id = String::with_capacity(32);
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// A seed for a request that names none. Drawn once, so that a replay draws the same tokens.
pub(super) fn seed() -> Result<u64, Error> {
    getrandom::u64().map_err(no_entropy)
}

fn no_entropy(error: getrandom::Error) -> Error {
    let message = format!("the operating system gave no random bytes: {error}");
    Error::new(Reason::Internal, message)
}
