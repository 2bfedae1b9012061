//! An answer as its front holds it.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Running,
    live::Place,
    outbox::{Next, Outbox, Render},
};
use crate::error::Error;

/// The reader's end of one request. Dropping it before its end cancels the request.
pub struct Answer {
    id: String,
    prompt_tokens: u32,
    outbox: Arc<Outbox>,
    /// Declared before `_place` and after `outbox`: see `Drop`.
    _running: Running,
    _place: Place,
}

impl Answer {
    pub(super) fn new(
        id: String,
        prompt_tokens: u32,
        outbox: Arc<Outbox>,
        running: Running,
        place: Place,
    ) -> Self {
        Self {
            id,
            prompt_tokens,
            outbox,
            _running: running,
            _place: place,
        }
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Waits until there is something to write; an error if the request failed before that.
    pub async fn first(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.outbox.poll_first(cx)).await
    }

    /// Ends the request with `error`, unless it has ended: the next poll tells it.
    pub fn fail(&self, error: Error) {
        self.outbox.fail(error);
    }

    /// Writes what is new into `render`.
    pub fn poll(&mut self, cx: &Context<'_>, render: &mut impl Render) -> Poll<Next> {
        self.outbox.poll(cx, render)
    }

    /// Writes what is new into `render`, waiting for it.
    pub async fn next(&mut self, render: &mut impl Render) -> Next {
        poll_fn(|cx| self.outbox.poll(cx, render)).await
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Before the ticket goes: its cancellation must not be told as a failure.
        self.outbox.leave();
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
