//! Attachments for the deterministic simulation (`router/protocol`): the same sessions, links and
//! commands as in a running router, without streams and timers. Not part of the router's interface.

use std::{rc::Rc, sync::Arc};

use dopd_core::ids::SessionId;

use crate::{
    metrics::Metrics,
    streams::front::Front,
    wire::worker::{Hello, attach_request, attach_response, command},
    workers::{AttachConfig, Attachments, attached::Attached, outgoing::Outgoing, registry},
};

impl Attachments {
    /// As [`Attachments::new`], with a number in the place of the random one.
    pub fn seeded(config: AttachConfig, metrics: Metrics, seed: u32) -> Arc<Self> {
        Arc::new(Self {
            config,
            metrics,
            registry: registry::Registry::new(seed),
            router: format!("router-{seed:08x}"),
        })
    }
}

/// One attachment; dropping it ends its session, as the end of its stream does.
pub struct Attachment {
    attached: Attached,
    outgoing: Arc<Outgoing>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Attachment").field(&self.session()).finish()
    }
}

impl Attachment {
    /// Takes the worker in that says this hello; else says why not.
    pub fn begin(
        attachments: &Arc<Attachments>,
        front: &Rc<Front>,
        hello: Hello,
    ) -> Result<Self, String> {
        let outgoing = Arc::new(Outgoing::default());
        Attached::begin(attachments, front, Arc::clone(&outgoing), hello)
            .map(|attached| Self { attached, outgoing })
            .map_err(|refused| refused.message)
    }

    /// Its session.
    pub fn session(&self) -> SessionId {
        self.attached.session()
    }

    /// The worker sent this; an error breaks the stream.
    pub fn message(&mut self, kind: attach_request::Kind) -> Result<(), String> {
        (self.attached.message(Some(kind))).map_err(|over| over.why)
    }

    /// Seats that were closed for what the worker said of them: none, if it keeps the protocol.
    pub fn spoiled(&self) -> u32 {
        self.attached.spoiled
    }

    /// A report interval passed; an error breaks the stream.
    pub fn tick(&mut self) -> Result<(), String> {
        self.attached.tick().map_err(|over| over.why)
    }

    /// The router wants its end: another session of its worker began, or it broke the protocol.
    pub fn is_stopped(&self) -> bool {
        self.attached.link.stop.is_cancelled()
    }

    /// The next message for the worker.
    pub fn next(&self) -> Option<attach_response::Kind> {
        self.outgoing.next()
    }

    /// One more command, as if the router had decided it.
    pub fn push(&self, kind: command::Kind) {
        self.outgoing.push(kind);
    }

    /// Slots that are not free, and seats that ended and were not asked for yet.
    pub fn seats(&self) -> usize {
        let state = self.attached.link.state.borrow();
        state.slots.iter().flatten().count() + state.ended.len() + state.voids.len()
    }
}
