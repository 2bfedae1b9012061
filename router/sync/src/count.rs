//! How many of something are alive.

use std::fmt;

use crate::imp::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A count of what is alive. Clones share it.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    /// One more, until the returned value is dropped.
    pub fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::AcqRel);
        Counted(self.clone())
    }

    /// How many there are. Zero means that everything the others did before they went is visible.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Count").field(&self.get()).finish()
    }
}

/// One of those that a [`Count`] counts.
#[derive(Debug)]
#[must_use = "it counts until this is dropped"]
pub struct Counted(Count);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use loom::{cell::UnsafeCell, model, thread};

    use super::*;

    #[test]
    fn it_counts_while_they_live_wherever_they_end() {
        model(|| {
            let count = Count::default();
            let (here, there) = (count.enter(), count.enter());
            assert_eq!(count.get(), 2);
            let other = thread::spawn(move || drop(there));
            drop(here);
            assert!(count.get() <= 1);
            other.join().unwrap();
            assert_eq!(count.get(), 0);
        });
    }

    /// Drain waits for zero, then takes down what the requests used.
    #[test]
    fn who_sees_zero_sees_what_was_done_before() {
        model(|| {
            let count = Count::default();
            let used = Arc::new(UnsafeCell::new(0));
            let (request, theirs) = (count.enter(), Arc::clone(&used));
            let other = thread::spawn(move || {
                // loom fails the test if this and the read below are not ordered.
                theirs.with_mut(|_| ());
                drop(request);
            });
            if count.get() == 0 {
                used.with(|_| ());
            }
            other.join().unwrap();
        });
    }
}
