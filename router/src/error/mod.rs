//! The one error of the router, and its table.
//!
//! Every failure that a client can see is an [`Error`]: a [`Reason`] (a row of [`table`]), a
//! message that says what happened with which value and which limit, and where it applies the field
//! and the retry hint. Fronts render it; nobody else invents statuses.

pub mod table;

pub use table::{Origin, Reason, Retry};

use std::{borrow::Cow, time::Duration};

/// A failure, ready to be shown.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Row of the table.
    pub reason: Reason,
    /// Lower case, no full stop: what happened, with which value, which limit, what to do.
    pub message: Cow<'static, str>,
    /// The request's field at fault, as the client wrote it (`messages[0].content`).
    pub field: Option<Cow<'static, str>>,
    /// When a retry makes sense.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error of `reason` with `message`.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            field: None,
            retry_after: None,
        }
    }

    /// The same, blaming `field`.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same, with a retry hint.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }
}
