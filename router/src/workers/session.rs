//! The life of one attachment: hello, welcome, reports, end.

use std::{rc::Rc, sync::Arc, time::Duration};

use dopd_core::event::Suspicion;
use futures_util::{Stream, StreamExt};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tonic::Status;

use crate::{
    streams::{
        front::Front,
        messages::{BrainInput, Joined},
    },
    wire::worker::{AttachRequest, Hello, KvCheck, KvScrub, Report, Welcome, attach_request},
    workers::{
        Attachments, hello,
        lease::{Health, Lease},
        link::{Identity, Link},
        outgoing::Outgoing,
        registry::{Admitted, Refused},
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
    match admit(&attachments, &hello) {
        Ok((admitted, joined)) => {
            let joined = Joined {
                home: front.index,
                ..joined
            };
            serve(
                &attachments,
                front,
                requests,
                outgoing,
                hello,
                admitted,
                joined,
            )
            .await;
        }
        Err(Refused { message, retry }) => {
            tracing::warn!(message, retry, "worker refused");
            outgoing.refuse(message, retry);
        }
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

/// Checks a hello and takes its worker in.
fn admit(attachments: &Attachments, hello: &Hello) -> Result<(Admitted, Joined), Refused> {
    let geometry = hello::check(hello)?;
    let facts = hello::facts(hello, geometry)?;
    let config = &attachments.config;
    let admitted = attachments.registry.admit(hello, geometry, config)?;
    let joined = Joined {
        session: admitted.session,
        home: 0,
        facts,
        pid: hello.pid,
        device: hello.device.clone(),
        address: hello.data_address.clone(),
    };
    Ok((admitted, joined))
}

/// An admitted worker, from welcome to the end of its session.
async fn serve<S>(
    attachments: &Attachments,
    front: Rc<Front>,
    requests: S,
    outgoing: Arc<Outgoing>,
    hello: Hello,
    admitted: Admitted,
    joined: Joined,
) where
    S: Stream<Item = Result<AttachRequest, Status>> + Unpin,
{
    let session = admitted.session;
    let identity = Identity {
        session,
        name: hello.worker,
        vocab_size: hello.vocab_size,
        pages_total: hello.pages_total,
    };
    let name = identity.name.clone();
    let link = Link::new(identity, Rc::clone(&front), outgoing, admitted.stop);
    // Whatever ends this task, its session ends with it.
    let ended = EndOnDrop {
        attachments,
        link: Rc::clone(&link),
    };
    let (role, device) = (joined.facts.role, &joined.device);
    tracing::info!(
        worker = name,
        session = session.0,
        ?role,
        device,
        "worker attached"
    );
    front.add_link(session, Rc::clone(&link) as Rc<_>);
    if let Some(old) = admitted.replaced {
        front.outbox.to_brain(BrainInput::Lost(old));
    }
    front.outbox.to_brain(BrainInput::Joined(Box::new(joined)));
    let workers = &attachments.config.workers;
    link.outgoing.welcome(Welcome {
        session: session.0,
        router: attachments.router.clone(),
        lease_ms: workers.lease_ms,
        report_interval_ms: workers.report_interval_ms,
        kv_check: kv_check(&workers.kv_check).into(),
        kv_scrub: kv_scrub(&workers.kv_scrub).into(),
    });
    let session = session.0;
    match read(attachments, &link, requests).await {
        End::Left => tracing::info!(worker = name, session, "worker left"),
        End::Stopped => tracing::info!(worker = name, session, "session ended by the router"),
        End::Broken(why) => tracing::warn!(worker = name, session, why, "worker lost"),
    }
    drop(ended);
}

/// A value that the settings allow.
fn kv_check(word: &str) -> KvCheck {
    match word {
        "off" => KvCheck::Off,
        "full" => KvCheck::Full,
        _ => KvCheck::Header,
    }
}

/// A value that the settings allow.
fn kv_scrub(word: &str) -> KvScrub {
    match word {
        "never" => KvScrub::Never,
        "always" => KvScrub::Always,
        _ => KvScrub::Tenant,
    }
}

/// How a session ended.
enum End {
    /// The worker ended its stream, as it does when it is told to stop.
    Left,
    /// The router ended it: a new session of the same worker, or the router stops.
    Stopped,
    /// Anything else, with the cause.
    Broken(String),
}

/// Reads reports until the session ends; returns how.
async fn read<S>(attachments: &Attachments, link: &Link, mut requests: S) -> End
where
    S: Stream<Item = Result<AttachRequest, Status>> + Unpin,
{
    let workers = &attachments.config.workers;
    let mut lease = Lease::new(workers.lease_ms, workers.report_interval_ms);
    let period = Duration::from_millis(u64::from(workers.report_interval_ms.max(1)));
    let mut tick = interval_at(tokio::time::Instant::now() + period, period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let request = tokio::select! {
            biased;
            () = link.stop.cancelled() => return End::Stopped,
            request = requests.next() => request,
            _ = tick.tick() => {
                match lease.tick() {
                    Health::Same => {}
                    Health::Suspect => {
                        tracing::warn!(worker = link.identity.name, "worker is silent");
                        let session = link.identity.session;
                        let suspected = BrainInput::Suspected(session, Suspicion::Silent);
                        link.front.outbox.to_brain(suspected);
                    }
                    Health::Lost => {
                        return End::Broken(format!("silent for {} ms", workers.lease_ms));
                    }
                }
                continue;
            }
        };
        lease.heard();
        let report = match request {
            None => return End::Left,
            Some(Err(status)) => {
                return End::Broken(format!("its stream broke: {}", status.message()));
            }
            Some(Ok(request)) => request.kind,
        };
        if let Err(why) = handle(link, report) {
            attachments.metrics.protocol_error();
            return End::Broken(format!("protocol error: {why}"));
        }
        link.front.outbox.ready().await;
    }
}

/// Handles what an attached worker sent.
fn handle(link: &Link, kind: Option<attach_request::Kind>) -> Result<(), String> {
    let report: Report = match kind {
        Some(attach_request::Kind::Report(report)) => report,
        Some(attach_request::Kind::Hello(_)) => return Err("a second hello".to_owned()),
        None => return Err("an empty message".to_owned()),
    };
    if report.session != link.identity.session.0 {
        // Of an earlier session of the same process: nothing in it is of this one.
        tracing::debug!(
            worker = link.identity.name,
            session = report.session,
            "old report"
        );
        return Ok(());
    }
    link.report(report)
        .map_err(|malformed| malformed.to_string())
}

/// Ends the session when dropped: also if the task is dropped with its runtime.
struct EndOnDrop<'a> {
    attachments: &'a Attachments,
    link: Rc<Link>,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let Identity { session, name, .. } = &self.link.identity;
        self.link.front.remove_link(*session);
        self.link.end();
        if self.attachments.registry.remove(name, *session) {
            self.link.front.outbox.to_brain(BrainInput::Lost(*session));
        }
    }
}
