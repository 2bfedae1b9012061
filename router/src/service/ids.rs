//! Random names and seeds, from the operating system.

use std::cell::RefCell;

use crate::error::{Error, Reason};

/// Random bytes taken from the system at once: a call for each request costs more than its bytes.
const TAKEN_BYTES: usize = 1_024;

/// Bytes that were not given out yet: the last `left` of `bytes`. Each is given out once.
struct Entropy {
    bytes: [u8; TAKEN_BYTES],
    left: usize,
}

thread_local! {
    static ENTROPY: RefCell<Entropy> = const {
        RefCell::new(Entropy {
            bytes: [0; TAKEN_BYTES],
            left: 0,
        })
    };
}

impl Entropy {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], getrandom::Error> {
        const { assert!(N <= TAKEN_BYTES) };
        if self.left < N {
            getrandom::fill(&mut self.bytes)?;
            self.left = TAKEN_BYTES;
        }
        let start = TAKEN_BYTES - self.left;
        self.left -= N;
        let mut taken = [0; N];
        if let Some(fresh) = self.bytes.get_mut(start..start + N) {
            taken.copy_from_slice(fresh);
            // What was given out is nowhere else: a name is not to be guessed.
            fresh.fill(0);
        }
        Ok(taken)
    }
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    ENTROPY.with_borrow_mut(Entropy::take).map_err(no_entropy)
}

/// 128 random bits in hex: unique without coordination, and not to be guessed.
pub(super) fn request_id() -> Result<String, Error> {
    Ok(format!("{:032x}", u128::from_ne_bytes(random()?)))
}

/// A seed for a request that names none. Drawn once, so that a replay draws the same tokens.
pub(super) fn seed() -> Result<u64, Error> {
    Ok(u64::from_ne_bytes(random()?))
}

fn no_entropy(error: getrandom::Error) -> Error {
    let message = format!("the operating system gave no random bytes: {error}");
    Error::new(Reason::Internal, message)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_of_32_digits_and_none_comes_twice() {
        let count = 3 * TAKEN_BYTES;
        let names: HashSet<String> = (0..count).map(|_| request_id().unwrap()).collect();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| name.len() == 32));
        assert_ne!(seed().unwrap(), seed().unwrap());
    }
}
