//! A worker that does what the test says, over the generated client.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use dopd_router::wire::worker::{
    AttachRequest, AttachResponse, CloseReason, Command, Endpoint, Grant, Hello, KvGeometry, Open,
    Refusal, Report, Role, attach_request, attach_response, command, open,
    worker_service_client::WorkerServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, metadata::MetadataValue};

use super::{PATIENCE, router::TOKEN};

/// Size of the scripted workers' vocabulary.
pub(crate) const VOCAB: u32 = 1_000;

/// An attached scripted worker.
pub(crate) struct Worker {
    pub(crate) session: u64,
    pub(crate) hello: Hello,
    requests: mpsc::Sender<AttachRequest>,
    responses: Streaming<AttachResponse>,
    pending: VecDeque<Command>,
    step: u64,
}

/// A hello that fits.
pub(crate) fn hello(name: &str, role: Role) -> Hello {
    Hello {
        worker: name.to_owned(),
        incarnation: 1,
        role: role.into(),
        geometry: Some(KvGeometry {
            model_hash: vec![7; 32],
            dtype: "mock".to_owned(),
            page_size: 16,
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 1,
            layout: "page_major_nhd".to_owned(),
            tensor_parallel: 1,
            page_bytes: 128,
        }),
        pages_total: 1_024,
        max_num_seqs: 64,
        max_batch_tokens: 4_096,
        max_model_len: 4_096,
        vocab_size: VOCAB,
        model: "test".to_owned(),
        device: "mock".to_owned(),
        data_address: "127.0.0.1:1".to_owned(),
        transports: vec!["tcp".to_owned()],
        pid: 4_711,
        timings_json: String::new(),
        role_epoch: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The grant of import slot `slot`.
pub(crate) fn grant(slot: u32) -> Grant {
    Grant {
        worker: "d".to_owned(),
        incarnation: 1,
        endpoints: vec![Endpoint {
            transport: "tcp".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            host: String::new(),
        }],
        nonce: 1_000 + u64::from(slot),
    }
}

/// Calls Attach; the stream of answers, and the way to say more.
pub(crate) async fn dial(
    address: SocketAddr,
    token: &str,
) -> Result<(mpsc::Sender<AttachRequest>, Streaming<AttachResponse>), Status> {
    let mut client = WorkerServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap()
        .max_decoding_message_size(16 << 20)
        .max_encoding_message_size(64 << 20);
    let (requests, queue) = mpsc::channel(64);
    let mut request = Request::new(ReceiverStream::new(queue));
    let bearer = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let responses = client.attach(request).await?.into_inner();
    Ok((requests, responses))
}

/// The next answer on a stream; `None` at its end.
pub(crate) async fn answer(
    responses: &mut Streaming<AttachResponse>,
) -> Option<attach_response::Kind> {
    let message = (tokio::time::timeout(PATIENCE, responses.message()).await)
        .expect("the router says nothing");
    // A broken stream is an end, too.
    message
        .ok()
        .flatten()
        .map(|response| response.kind.expect("an empty message"))
}

impl Worker {
    /// Attaches a worker that fits.
    pub(crate) async fn join(address: SocketAddr, name: &str, role: Role) -> Self {
        Self::try_join(address, hello(name, role))
            .await
            .expect("refused")
    }

    /// Attaches, or gets the refusal.
    pub(crate) async fn try_join(address: SocketAddr, hello: Hello) -> Result<Self, Refusal> {
        let (requests, mut responses) = dial(address, TOKEN).await.expect("the call failed");
        let kind = Some(attach_request::Kind::Hello(hello.clone()));
        requests.send(AttachRequest { kind }).await.unwrap();
        match answer(&mut responses).await.expect("the stream ended") {
            attach_response::Kind::Welcome(welcome) => Ok(Self {
                session: welcome.session,
                hello,
                requests,
                responses,
                pending: VecDeque::new(),
                step: 0,
            }),
            attach_response::Kind::Refusal(refusal) => {
                assert!(
                    answer(&mut responses).await.is_none(),
                    "more after a refusal"
                );
                Err(refusal)
            }
            attach_response::Kind::Cmd(cmd) => panic!("{cmd:?} before a welcome"),
        }
    }

    /// The next command; heartbeats are passed over.
    pub(crate) async fn next(&mut self) -> command::Kind {
        loop {
            if let Some(command) = self.pending.pop_front() {
                return command.kind.expect("an empty command");
            }
            match answer(&mut self.responses)
                .await
                .expect("the router ended the stream")
            {
                attach_response::Kind::Cmd(cmd) => {
                    assert_eq!(cmd.session, self.session);
                    self.pending.extend(cmd.commands);
                }
                other => panic!("{other:?} after the welcome"),
            }
        }
    }

    /// The next command, an Open.
    pub(crate) async fn open(&mut self) -> Open {
        match self.next().await {
            command::Kind::Open(open) => open,
            other => panic!("{other:?} instead of an open"),
        }
    }

    /// The next command, an Open to compute; also prompt and answer so far.
    pub(crate) async fn compute(&mut self) -> (u32, Vec<u32>, Vec<u32>) {
        let open = self.open().await;
        match open.kind {
            Some(open::Kind::Compute(compute)) => (open.slot, compute.prompt, compute.answer),
            other => panic!("{other:?} instead of compute"),
        }
    }

    /// The next command, an Open to import; also the tokens that the router has.
    pub(crate) async fn import(&mut self) -> (u32, u32) {
        let open = self.open().await;
        match open.kind {
            Some(open::Kind::Import(import)) => (open.slot, import.have),
            other => panic!("{other:?} instead of import"),
        }
    }

    /// The next command, a Send of `slot`.
    pub(crate) async fn send_of(&mut self, slot: u32) -> Option<Grant> {
        match self.next().await {
            command::Kind::Send(send) if send.slot == slot => send.grant,
            other => panic!("{other:?} instead of a send of {slot}"),
        }
    }

    /// The next command, the Close of `slot`.
    pub(crate) async fn close_of(&mut self, slot: u32) {
        match self.next().await {
            command::Kind::Close(close) if close.slot == slot => {}
            other => panic!("{other:?} instead of a close of {slot}"),
        }
    }

    /// Reads until the router ends the stream.
    pub(crate) async fn ended(mut self) {
        while answer(&mut self.responses).await.is_some() {}
    }

    /// Sends a report.
    pub(crate) async fn say(&mut self, say: Say) {
        let report = self.report(say);
        self.send(report).await;
    }

    /// The report, with its head filled in.
    pub(crate) fn report(&mut self, say: Say) -> Report {
        self.step += 1;
        Report {
            session: self.session,
            step: self.step,
            role: self.hello.role,
            pages_free: self.hello.pages_total,
            ..say.0
        }
    }

    /// Says the same again and again, as the sender's thread of a worker does, until dropped.
    pub(crate) fn beat(&mut self, say: Say, every: Duration) -> Beating {
        let report = self.report(say);
        let requests = self.requests.clone();
        Beating(tokio::spawn(async move {
            let kind = Some(attach_request::Kind::Report(report));
            while requests
                .send(AttachRequest { kind: kind.clone() })
                .await
                .is_ok()
            {
                tokio::time::sleep(every).await;
            }
        }))
    }

    /// Sends a report as it is.
    pub(crate) async fn send(&mut self, report: Report) {
        let kind = Some(attach_request::Kind::Report(report));
        assert!(
            self.requests.send(AttachRequest { kind }).await.is_ok(),
            "stream ended"
        );
    }
}

/// A worker's heart.
pub(crate) struct Beating(tokio::task::JoinHandle<()>);

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a report says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Say(pub(crate) Report);

impl Say {
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    pub(crate) fn opened(mut self, slot: u32) -> Self {
        self.0.opened_slots.push(slot);
        self.0.opened_grants.push(grant(slot));
        self
    }

    pub(crate) fn arrived(mut self, slot: u32, pos: u32, tail: &[u32]) -> Self {
        self.0.arrived_slots.push(slot);
        self.0.arrived_pos.push(pos);
        self.0
            .arrived_tail_lens
            .push(u32::try_from(tail.len()).unwrap());
        self.0.arrived_tails.extend_from_slice(tail);
        self
    }

    pub(crate) fn token(mut self, slot: u32, token: u32) -> Self {
        self.0.token_slots.push(slot);
        self.0.tokens.push(token);
        self
    }

    pub(crate) fn closed(mut self, slot: u32, why: CloseReason) -> Self {
        self.0.closed_slots.push(slot);
        self.0.closed_reasons.push(why.into());
        self
    }
}
