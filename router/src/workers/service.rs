//! The gRPC service that workers call.

use std::sync::Arc;

use subtle::ConstantTimeEq;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    streams::front::Front,
    wire::worker::{AttachRequest, worker_service_server::WorkerService},
    workers::{
        Attachments,
        outgoing::{Outgoing, Responses},
        session,
    },
};

/// One front thread's service. Polled inside that thread's `LocalSet` only.
#[derive(Clone, Debug)]
pub(super) struct Service {
    attachments: Arc<Attachments>,
}

impl Service {
    pub(super) fn new(attachments: Arc<Attachments>) -> Self {
        Self { attachments }
    }

    /// Refuses a caller without the join token, in a time that does not depend on its guess.
    fn authorize(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let token = (metadata.get("authorization"))
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .unwrap_or_default();
        let expected = self.attachments.config.join_token.as_bytes();
        if !expected.is_empty() && bool::from(token.ct_eq(expected)) {
            return Ok(());
        }
        tracing::warn!("a worker showed a wrong join token");
        Err(Status::unauthenticated(
            "wrong join token: give the worker the token of this router (DOPD_JOIN_TOKEN or \
             --join-token-file)",
        ))
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type AttachStream = Responses;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Responses>, Status> {
        self.authorize(request.metadata())?;
        let outgoing = Arc::new(Outgoing::default());
        let responses = Responses::new(Arc::clone(&outgoing));
        let attachments = Arc::clone(&self.attachments);
        {
            let front = Front::current()
                .ok_or_else(|| Status::unavailable("the router is shutting down"))?;
            let requests = request.into_inner();
            let run = session::run(attachments, front, requests, outgoing);
            tokio::task::spawn_local(run);
        }
        Ok(Response::new(responses))
    }
}
