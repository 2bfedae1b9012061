//! The life of one attachment: waits for its stream, its timer and its end; [`Attached`] acts.

use std::{rc::Rc, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tonic::Status;

use crate::{
    metrics::SessionEnd,
    streams::front::Front,
    wire::worker::{AttachRequest, Hello, attach_request},
    workers::{
        Attachments,
        attached::{Attached, Over},
        link::Link,
        outgoing::Outgoing,
        registry::Refused,
    },
};

/// Time for the first message after the call.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one attachment until its stream, its lease or its worker's protocol breaks.
pub(super) async fn run<S>(
    attachments: Arc<Attachments>,
    front: Rc<Front>,
    mut requests: S,
    outgoing: Arc<Outgoing>,
) where
    S: Stream<Item = Result<AttachRequest, Status>> + Unpin,
{
    let hello = match first(&mut requests).await {
        Ok(hello) => hello,
        Err(message) => {
            tracing::warn!(message, "worker did not say hello");
            attachments.metrics.protocol_error();
            outgoing.refuse(message, false);
            return;
        }
    };
    // Whatever ends this task, its session ends with it: `attached` is dropped.
    let attached = Attached::begin(&attachments, &front, Arc::clone(&outgoing), hello);
    let mut attached = match attached {
        Ok(attached) => attached,
        Err(Refused { message, retry }) => {
            tracing::warn!(message, retry, "worker refused");
            outgoing.refuse(message, retry);
            return;
        }
    };
    let worker = attached.link.identity.name.clone();
    let session = attached.session().0;
    let Over { cause, why } = read(&attachments, &mut attached, requests).await;
    attachments.metrics.session_ended(cause);
    if cause == SessionEnd::Protocol {
        attachments.metrics.protocol_error();
    }
    match cause {
        SessionEnd::Left | SessionEnd::Replaced => {
            tracing::info!(worker, session, why, "worker left");
        }
        _ => tracing::warn!(worker, session, why, "worker lost"),
    }
}

/// The hello, or what came instead.
async fn first<S>(requests: &mut S) -> Result<Hello, String>
where
    S: Stream<Item = Result<AttachRequest, Status>> + Unpin,
{
    match timeout(HELLO_TIMEOUT, requests.next()).await {
        Err(_) => Err(format!("no hello within {} s", HELLO_TIMEOUT.as_secs())),
        Ok(None) => Err("the stream ended before a hello".to_owned()),
        Ok(Some(Err(status))) => Err(format!("the stream broke before a hello: {status}")),
        Ok(Some(Ok(request))) => match request.kind {
            Some(attach_request::Kind::Hello(hello)) => Ok(hello),
            Some(attach_request::Kind::Report(_)) | None => {
                Err("the first message is not a hello".to_owned())
            }
        },
    }
}

/// Reads reports until the session ends; returns how.
async fn read<S>(attachments: &Attachments, attached: &mut Attached, mut requests: S) -> Over
where
    S: Stream<Item = Result<AttachRequest, Status>> + Unpin,
{
    let workers = &attachments.config.workers;
    let period = Duration::from_millis(u64::from(workers.report_interval_ms.max(1)));
    let mut tick = interval_at(tokio::time::Instant::now() + period, period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let link = Rc::clone(&attached.link);
    loop {
        let handled = tokio::select! {
            biased;
            () = link.stop.cancelled() => return stopped(&link),
            request = requests.next() => match request {
                None => return over(SessionEnd::Left, "it ended its stream".to_owned()),
                Some(Err(status)) => {
                    let why = format!("its stream broke: {}", status.message());
                    return over(SessionEnd::Stream, why);
                }
                Some(Ok(request)) => attached.message(request.kind),
            },
            _ = tick.tick() => attached.tick(),
        };
        if let Err(over) = handled {
            return over;
        }
        link.front.outbox.ready().await;
    }
}

fn over(cause: SessionEnd, why: String) -> Over {
    Over { cause, why }
}

/// The router ended the session.
fn stopped(link: &Link) -> Over {
    if link.is_broken.get() {
        let why = "what it reported of its seats cannot be".to_owned();
        return over(SessionEnd::Protocol, why);
    }
    let why = "another session of the same worker took its place".to_owned();
    over(SessionEnd::Replaced, why)
}
