//! A scripted router: accepts workers, says what the test says, hands the test what they report.

use std::{collections::HashMap, pin::Pin, time::Duration};

use dopd_router::wire::worker::{
    self as wire, AttachRequest, AttachResponse, Cmd, Command, Hello, Report, Welcome,
    attach_request, attach_response, command, open,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// Longest wait of a test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// One attached worker as the router sees it.
pub(crate) struct Attached {
    pub(crate) hello: Hello,
    pub(crate) session: u64,
    commands: mpsc::Sender<Result<AttachResponse, Status>>,
    requests: Streaming<AttachRequest>,
    /// Everything heard per slot.
    pub(crate) heard: HashMap<u32, Heard>,
    pub(crate) last: Report,
}

/// What a worker said about a slot.
#[derive(Debug, Default, Clone)]
pub(crate) struct Heard {
    pub(crate) grant: Option<wire::Grant>,
    pub(crate) arrived: Option<(u32, Vec<u32>)>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) closed: Vec<wire::CloseReason>,
}

impl Attached {
    pub(crate) async fn say(&self, commands: Vec<command::Kind>) {
        let commands = commands
            .into_iter()
            .map(|kind| Command { kind: Some(kind) })
            .collect();
        let cmd = attach_response::Kind::Cmd(Cmd {
            session: self.session,
            commands,
        });
        let _ = self
            .commands
            .send(Ok(AttachResponse { kind: Some(cmd) }))
            .await;
    }

    /// Reads reports until `done` holds for the slot.
    pub(crate) async fn until(
        &mut self,
        slot: u32,
        what: &str,
        done: impl Fn(&Heard) -> bool,
    ) -> Heard {
        loop {
            if let Some(heard) = self.heard.get(&slot)
                && done(heard)
            {
                return heard.clone();
            }
            self.read(what).await;
        }
    }

    pub(crate) async fn read(&mut self, what: &str) {
        let message = timeout(PATIENCE, self.requests.message()).await;
        let message = message.unwrap_or_else(|_| panic!("{}: no {what}", self.hello.worker));
        let message = message.expect("stream error").expect("stream ended");
        let Some(attach_request::Kind::Report(report)) = message.kind else {
            panic!("report expected");
        };
        assert_eq!(report.session, self.session);
        self.note(&report);
        self.last = report;
    }

    fn note(&mut self, report: &Report) {
        let heard = &mut self.heard;
        for (slot, grant) in report.opened_slots.iter().zip(&report.opened_grants) {
            heard.entry(*slot).or_default().grant = Some(grant.clone());
        }
        let mut tails = report.arrived_tails.iter().copied();
        for (index, slot) in report.arrived_slots.iter().enumerate() {
            let tail = tails
                .by_ref()
                .take(report.arrived_tail_lens[index] as usize)
                .collect();
            heard.entry(*slot).or_default().arrived = Some((report.arrived_pos[index], tail));
        }
        for (slot, token) in report.token_slots.iter().zip(&report.tokens) {
            heard.entry(*slot).or_default().tokens.push(*token);
        }
        for (slot, reason) in report.closed_slots.iter().zip(report.closed_reasons()) {
            heard.entry(*slot).or_default().closed.push(reason);
        }
    }

    /// Reads reports until the worker shows every page free.
    pub(crate) async fn until_clean(&mut self) {
        while self.last.pages_free != self.hello.pages_total {
            self.read("report with all pages free").await;
        }
    }
}

/// The service behind the test's hands.
struct Service {
    token: String,
    sessions: Mutex<u64>,
    lease_ms: u32,
    attached: mpsc::Sender<Attached>,
}

#[tonic::async_trait]
impl WorkerService for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let bearer = format!("Bearer {}", self.token);
        if request
            .metadata()
            .get("authorization")
            .is_none_or(|told| *told != *bearer)
        {
            return Err(Status::unauthenticated("wrong join token"));
        }
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|message| message.kind);
        let Some(attach_request::Kind::Hello(hello)) = first else {
            return Err(Status::invalid_argument("hello expected"));
        };
        let mut session = self.sessions.lock().await;
        *session += 1;
        let (commands, stream) = mpsc::channel(64);
        let welcome = attach_response::Kind::Welcome(Welcome {
            session: *session,
            router: "test".to_owned(),
            lease_ms: self.lease_ms,
            report_interval_ms: 20,
            kv_check: wire::KvCheck::Header.into(),
            kv_scrub: wire::KvScrub::Tenant.into(),
            step_policy: None,
            prefix_cache: false,
        });
        let welcome = AttachResponse {
            kind: Some(welcome),
        };
        commands.try_send(Ok(welcome)).expect("room");
        let attached = Attached {
            hello,
            session: *session,
            commands,
            requests,
            heard: HashMap::new(),
            last: Report::default(),
        };
        self.attached.try_send(attached).expect("room");
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// A running scripted router.
pub(crate) struct Router {
    pub(crate) address: String,
    attached: mpsc::Receiver<Attached>,
    _server: tokio::task::JoinSet<()>,
}

impl Router {
    pub(crate) async fn start(token: &str, lease_ms: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let (sender, attached) = mpsc::channel(64);
        let service = Service {
            token: token.to_owned(),
            sessions: Mutex::new(0),
            lease_ms,
            attached: sender,
        };
        let mut server = tokio::task::JoinSet::new();
        server.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(WorkerServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("serve");
        });
        Self {
            address,
            attached,
            _server: server,
        }
    }

    pub(crate) async fn next(&mut self) -> Attached {
        let next = timeout(PATIENCE, self.attached.recv()).await;
        next.expect("a worker attaches").expect("service lives")
    }
}

/// A request of the test.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: u32,
    pub(crate) sampling: wire::Sampling,
}

impl Ask {
    pub(crate) fn new(length: u32, max_tokens: u32) -> Self {
        Self {
            prompt: (0..length).map(|index| 32 + index % 95).collect(),
            max_tokens,
            sampling: wire::Sampling {
                temperature: 1.0,
                top_p: 1.0,
                seed: 7,
                ..wire::Sampling::default()
            },
        }
    }

    fn open(&self, slot: u32, kind: open::Kind) -> command::Kind {
        let prompt_tokens = u32::try_from(self.prompt.len()).expect("short");
        command::Kind::Open(wire::Open {
            slot,
            pages: (prompt_tokens + self.max_tokens).div_ceil(16),
            prompt_tokens,
            prompt_hash: dopd_mock::model::prompt_hash(&self.prompt),
            sampling: Some(self.sampling),
            limits: Some(wire::Limits {
                max_tokens: self.max_tokens,
                ignore_eos: true,
                ..wire::Limits::default()
            }),
            kind: Some(kind),
            ..wire::Open::default()
        })
    }

    pub(crate) fn compute(&self, slot: u32, answer: &[u32]) -> command::Kind {
        self.open(
            slot,
            open::Kind::Compute(wire::Compute {
                prompt: self.prompt.clone(),
                answer: answer.to_vec(),
                prompt_group: 0,
            }),
        )
    }

    pub(crate) fn import(&self, slot: u32, have: u32) -> command::Kind {
        self.open(
            slot,
            open::Kind::Import(wire::Import {
                have,
                ..Default::default()
            }),
        )
    }

    /// The answer that every way of serving it must give.
    pub(crate) fn answer(&self) -> Vec<u32> {
        use dopd_mock::model::{CHAIN_START, draw, next_entry};
        let prompt = self.prompt.iter();
        let mut entry = prompt.fold(CHAIN_START, |entry, &token| next_entry(entry, token));
        let mut answer = Vec::new();
        for pos in 0..self.max_tokens {
            let token = draw(entry, &self.sampling, pos).token;
            entry = next_entry(entry, token);
            answer.push(token);
        }
        answer
    }
}

pub(crate) fn send(slot: u32, grant: Option<wire::Grant>) -> command::Kind {
    command::Kind::Send(wire::Send { slot, grant })
}

pub(crate) fn close(slot: u32) -> command::Kind {
    command::Kind::Close(wire::Close { slot })
}
