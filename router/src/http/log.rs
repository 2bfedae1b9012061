//! An answer as events without a connection: for the fuzzer, which holds nothing of hyper's.

use std::sync::Arc;

use super::{form::Form, pages, stream::EventWriter};
use crate::{
    error::Error,
    service::{Delta, Render, Usage},
    tokens::ServedModel,
    validate::{AnswerForm, Endpoint, Spec},
};

/// Everything that a stream would send.
#[derive(Debug)]
pub struct EventLog(EventWriter);

impl EventLog {
    /// Of an answer to a request that asked for `form` and became `spec`.
    pub fn new(endpoint: Endpoint, form: AnswerForm, spec: &Spec, model: Arc<ServedModel>) -> Self {
        let fingerprint = pages::fingerprint(&model);
        let form = Form::new(endpoint, form, spec);
        Self(EventWriter::new(form, model, &fingerprint, "0"))
    }

    /// What was written.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.0.take().to_vec()
    }
}

impl Render for EventLog {
    fn delta(&mut self, delta: Delta<'_>) {
        self.0.delta(delta);
    }

    fn ping(&mut self) {
        self.0.ping();
    }

    fn done(&mut self, usage: Usage) {
        self.0.done(usage);
    }

    fn failed(&mut self, error: Error) {
        self.0.failed(error);
    }
}
