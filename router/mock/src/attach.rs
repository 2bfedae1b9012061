//! The session with a router: dial, hello, welcome, commands in, reports out, redial.
//!
//! The stream is the lease: it ends, or is silent for `lease_ms`, and the session is lost. Commands
//! go to the worker's inbox; reports go straight from the worker into the queue that tonic polls.
//! Called by `worker`.

use std::time::Duration;

use dopd_router::wire::worker::{
    AttachRequest, AttachResponse, Hello, Welcome, attach_request, attach_response,
    worker_service_client::WorkerServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming, metadata::MetadataValue, transport::Endpoint};

use crate::{
    backoff::Backoff,
    worker::{Input, Session},
};

/// Reports that wait for the stream. Few: while they wait the worker makes no further step.
const REPORTS_MAX: usize = 8;
/// Longest Cmd: prompts of a whole batch.
const CMD_BYTES_MAX: usize = 64 << 20;
/// Time for connect, hello and welcome.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Flow-control windows of HTTP/2: wide enough for a long prompt in one flight.
const WINDOW_BYTES: u32 = 4 << 20;

/// Where to dial and how to prove that we may.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `host:port`.
    pub(crate) join: String,
    /// Empty: none is sent.
    pub(crate) join_token: String,
}

/// How an attempt ended.
enum Ended {
    /// After a welcome: the next dial is quick.
    Lost,
    /// Before one.
    Failed(String),
    /// For good.
    Refused(String),
}

/// Attaches, again and again, until the worker is gone or the router refuses for good.
pub(crate) async fn attach(
    target: Target,
    hello: watch::Receiver<Hello>,
    inbox: mpsc::Sender<Input>,
) {
    let mut backoff = Backoff::new();
    loop {
        match one_session(&target, &hello, &inbox).await {
            Ended::Lost => backoff = Backoff::new(),
            Ended::Failed(why) => tracing::warn!(join = target.join, why, "attach failed"),
            Ended::Refused(why) => {
                // The worker is gone if this fails.
                let _ = inbox.send(Input::Refused(why)).await;
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = inbox.closed() => return,
        }
    }
}

async fn one_session(
    target: &Target,
    hello: &watch::Receiver<Hello>,
    inbox: &mpsc::Sender<Input>,
) -> Ended {
    let (reports, queue) = mpsc::channel(REPORTS_MAX);
    let hello = hello.borrow().clone();
    let greeting = greet(target, hello, &reports, queue);
    let (welcome, stream) = match timeout(HELLO_TIMEOUT, greeting).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(ended)) => return ended,
        Err(_) => return Ended::Failed(format!("no welcome within {HELLO_TIMEOUT:?}")),
    };
    let (session, closed) = Session::new(&welcome, reports);
    if inbox.send(Input::SessionUp(session)).await.is_err() {
        return Ended::Lost;
    }
    let lease = Duration::from_millis(u64::from(welcome.lease_ms));
    tokio::select! {
        why = receive(stream, lease, inbox) => tracing::info!(why, "session lost"),
        // The worker dropped the session: the router broke the protocol, or it is time to go.
        _ = closed => tracing::info!("session closed by the worker"),
    }
    // The worker is gone if this fails.
    let _ = inbox.send(Input::SessionLost).await;
    Ended::Lost
}

async fn greet(
    target: &Target,
    hello: Hello,
    reports: &mpsc::Sender<AttachRequest>,
    queue: mpsc::Receiver<AttachRequest>,
) -> Result<(Welcome, Streaming<AttachResponse>), Ended> {
    let failed = |error: &dyn std::error::Error| Ended::Failed(with_causes(error));
    let endpoint = Endpoint::from_shared(format!("http://{}", target.join))
        .map_err(|error| Ended::Refused(format!("join address {}: {error}", target.join)))?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let channel = endpoint.connect().await.map_err(|error| failed(&error))?;
    let mut client = WorkerServiceClient::new(channel)
        .max_decoding_message_size(CMD_BYTES_MAX)
        .max_encoding_message_size(CMD_BYTES_MAX);
    let first = AttachRequest {
        kind: Some(attach_request::Kind::Hello(hello)),
    };
    if reports.try_send(first).is_err() {
        return Err(Ended::Failed("no room for the hello".to_owned()));
    }
    let mut request = Request::new(ReceiverStream::new(queue));
    if !target.join_token.is_empty() {
        let value = format!("Bearer {}", target.join_token);
        let value = MetadataValue::try_from(value)
            .map_err(|_| Ended::Refused("the join token is not printable ASCII".to_owned()))?;
        request.metadata_mut().insert("authorization", value);
    }
    let response = client
        .attach(request)
        .await
        .map_err(|status| judge(&status))?;
    let mut stream = response.into_inner();
    let first = stream.message().await.map_err(|status| judge(&status))?;
    match first.and_then(|response| response.kind) {
        Some(attach_response::Kind::Welcome(welcome)) => Ok((welcome, stream)),
        Some(attach_response::Kind::Refusal(refusal)) if refusal.retry => {
            Err(Ended::Failed(refusal.message))
        }
        Some(attach_response::Kind::Refusal(refusal)) => Err(Ended::Refused(refusal.message)),
        Some(attach_response::Kind::Cmd(_)) => Err(Ended::Failed("cmd before welcome".to_owned())),
        None => Err(Ended::Failed(
            "the stream ended before a welcome".to_owned(),
        )),
    }
}

/// A wrong token stays wrong; all else may pass.
fn judge(status: &tonic::Status) -> Ended {
    let why = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => Ended::Refused(why),
        _ => Ended::Failed(why),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Passes commands on until the stream ends or the lease is over; returns why.
async fn receive(
    mut stream: Streaming<AttachResponse>,
    lease: Duration,
    inbox: &mpsc::Sender<Input>,
) -> String {
    loop {
        let message = match timeout(lease, stream.message()).await {
            Err(_) => return format!("nothing heard for {lease:?}"),
            Ok(Err(status)) => return status.message().to_owned(),
            Ok(Ok(None)) => return "the router closed the stream".to_owned(),
            Ok(Ok(Some(message))) => message,
        };
        match message.kind {
            Some(attach_response::Kind::Cmd(cmd)) => {
                if inbox.send(Input::Cmd(cmd)).await.is_err() {
                    return "the worker ended".to_owned();
                }
            }
            _ => return "the router sent something else than a cmd".to_owned(),
        }
    }
}
