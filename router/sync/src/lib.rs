//! What threads of the router share, in two small types whose every interleaving is explored.
//!
//! [`Watched`] is a value that one task waits for and anybody changes: commands on their way to a
//! worker, requests given up on another thread. [`Count`] counts what is alive: requests that
//! have not ended. Built on `parking_lot`; its own unit tests build it on `loom`, which runs them
//! once for each order in which threads can interleave, so a wake-up that is lost in one of them
//! fails the test in every run.

mod count;
mod watched;

pub use self::{
    count::{Count, Counted},
    watched::Watched,
};

/// The primitives; loom's have the interface of `std`.
mod imp {
    #[cfg(test)]
    pub(crate) use loom::sync::{Arc, atomic};
    #[cfg(not(test))]
    pub(crate) use std::sync::{Arc, atomic};

    /// A mutex.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(
        #[cfg(not(test))] parking_lot::Mutex<T>,
        #[cfg(test)] loom::sync::Mutex<T>,
    );

    impl<T> Mutex<T> {
        /// Around `value`.
        #[cfg(not(test))]
        pub(crate) const fn new(value: T) -> Self {
            Self(parking_lot::Mutex::new(value))
        }

        /// Around `value`.
        #[cfg(test)]
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits for it.
        #[cfg(not(test))]
        pub(crate) fn lock(&self) -> impl std::ops::DerefMut<Target = T> + '_ {
            self.0.lock()
        }

        /// Waits for it.
        #[cfg(test)]
        pub(crate) fn lock(&self) -> impl std::ops::DerefMut<Target = T> + '_ {
            self.0.lock().unwrap()
        }
    }
}
