//! What reaches a worker, and its half of a session.

use std::time::Duration;

use dopd_router::wire::worker::{AttachRequest, Cmd, Report, Welcome, attach_request};
use tokio::sync::{mpsc, oneshot};

use crate::seats::{LinkId, LinkMessage, Terms};

/// Queue of one link's task; dropping it ends the connection.
pub type LinkSender = mpsc::Sender<LinkMessage>;

/// What reaches a worker.
#[derive(Debug)]
pub enum Input {
    /// A router welcomed us.
    SessionUp(Session),
    /// Stream or lease ended.
    SessionLost,
    /// The router will never take us.
    Refused(String),
    /// Commands.
    Cmd(Cmd),
    /// A connection passed the handshake.
    LinkUp(LinkId, LinkSender),
    /// A connection ended or could not be made.
    LinkDown(LinkId),
    /// A peer's message.
    Frame(LinkId, LinkMessage),
    /// Payload left on an outgoing link.
    Drained(u64, u32),
}

/// The worker's half of a session; dropping it ends the stream.
#[derive(Debug)]
pub struct Session {
    pub(super) terms: Terms,
    pub(super) interval: Duration,
    reports: mpsc::Sender<AttachRequest>,
    alive: oneshot::Sender<()>,
}

impl Session {
    /// A session as welcomed, and the sign that the worker dropped it.
    pub(crate) fn new(
        welcome: &Welcome,
        reports: mpsc::Sender<AttachRequest>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (alive, closed) = oneshot::channel();
        let session = Self {
            terms: Terms::of(welcome),
            interval: Duration::from_millis(u64::from(welcome.report_interval_ms.max(1))),
            reports,
            alive,
        };
        (session, closed)
    }

    /// Whether a report can be sent now. The worker is the only sender, so it stays true until it
    /// sends.
    pub(super) fn has_room(&self) -> bool {
        self.reports.capacity() > 0
    }

    /// Sends a report; it is lost if there is no room or no stream, and so is the session then.
    pub(super) fn send(&self, report: Report) {
        let kind = Some(attach_request::Kind::Report(report));
        if self.reports.try_send(AttachRequest { kind }).is_err() {
            tracing::debug!(
                session = self.terms.session,
                "report not sent: the stream is closed"
            );
        }
    }

    /// Another handle on the queue of reports, to wait for room.
    pub(super) fn reports(&self) -> mpsc::Sender<AttachRequest> {
        self.reports.clone()
    }

    /// Says good-bye: nothing more is sent, what was sent arrives. Hold the result until the router
    /// has ended the stream: dropping it cuts.
    pub(super) fn bow(self) -> oneshot::Sender<()> {
        self.alive
    }
}
