//! One worker's process: the real seat table, and what drives it.
//!
//! `dopd_mock::worker` drives the same table with tasks, sockets and timers; here stand its rules
//! without them: perform, step, report, in this order, after each input; no step without room for
//! a report; a report at each change and at least every 200 ms; a lease of 3 s.

use dopd_core::units::Micros;
use dopd_mock::{
    model,
    seats::{Batch, Seats, SeatsConfig},
};
use dopd_router::wire::worker::{Command, Hello, Report};

use crate::plan::{MODEL_LEN_MAX, Plan};

/// Time without a Cmd after which a worker closes everything.
pub(crate) const LEASE: Micros = Micros::from_millis(3_000);
/// Time between two reports, at most.
pub(crate) const INTERVAL: Micros = Micros::from_millis(200);
/// Reports that may wait for the stream.
pub(crate) const REPORTS_MAX: usize = 8;

/// A step under way.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) number: u64,
    pub(crate) batch: Batch,
    pub(crate) us: u32,
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    /// Counts its processes.
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// Stopped until then.
    pub(crate) frozen: Micros,
    /// No step ends before.
    pub(crate) stuck: Micros,
    pub(crate) seats: Seats,
    /// The stream that it holds, welcome or not.
    pub(crate) stream: Option<usize>,
    /// Failed dials to the router since the last welcome.
    pub(crate) tries: u32,
    pub(crate) step: Option<Step>,
    steps: u64,
    pub(crate) last_cmd: Micros,
    pub(crate) reported: Micros,
    /// A look at the fences is planned for then.
    pub(crate) fence_poll: Option<Micros>,
    /// A report with an end and an Open, the last of this session, and of the one before.
    pub(crate) said: Option<Report>,
    pub(crate) heard: Option<(u64, Command)>,
    pub(crate) old_report: Option<Report>,
    pub(crate) old_command: Option<(u64, Command)>,
    /// A fault wants them said again under the next session: the report, the command.
    pub(crate) wants_old: (bool, bool),
    /// Payload that left while it was stopped, by link.
    pub(crate) drained: Vec<(u64, u32)>,
    rate: u64,
    /// Greatest role epoch seen: `role_epoch_never_falls`.
    pub(crate) role_epoch: u64,
    /// Seats preempted, steps mixed and paused, as it told last.
    pub(crate) told: [u64; 3],
}

impl Process {
    pub(crate) fn new(plan: &Plan, index: usize) -> Self {
        Self {
            name: format!("w{index}"),
            life: 0,
            is_up: true,
            frozen: Micros(0),
            stuck: Micros(0),
            seats: Seats::new(seats_config(plan, index, 0)),
            stream: None,
            tries: 0,
            step: None,
            steps: 0,
            last_cmd: Micros(0),
            reported: Micros(0),
            fence_poll: None,
            said: None,
            heard: None,
            old_report: None,
            old_command: None,
            wants_old: (false, false),
            drained: Vec::new(),
            rate: plan.rates.get(index + 1).copied().unwrap_or(1_000),
            role_epoch: 0,
            told: [0; 3],
        }
    }

    /// The process ends; what comes next knows nothing of it.
    pub(crate) fn reset(&mut self, plan: &Plan, index: usize) {
        self.life += 1;
        self.is_up = false;
        self.seats = Seats::new(seats_config(plan, index, self.life));
        self.stream = None;
        self.step = None;
        self.frozen = Micros(0);
        self.stuck = Micros(0);
        self.fence_poll = None;
        self.said = None;
        self.heard = None;
        self.old_report = None;
        self.old_command = None;
        self.wants_old = (false, false);
        self.drained.clear();
        self.role_epoch = 0;
        self.told = [0; 3];
    }

    /// What the worker's clock shows.
    pub(crate) fn time(&self, now: Micros) -> Micros {
        Micros(now.0 * self.rate / 1_000)
    }

    /// When the worker's clock will show `time`.
    pub(crate) fn when(&self, time: Micros) -> Micros {
        Micros(time.0.saturating_mul(1_000).div_ceil(self.rate.max(1)))
    }

    /// How long so much of the worker's time takes.
    pub(crate) fn lasts(&self, time: Micros) -> Micros {
        self.when(time)
    }

    /// A number for the next step.
    pub(crate) fn next_step(&mut self) -> u64 {
        self.steps += 1;
        self.steps
    }

    pub(crate) fn hello(&self, plan: &Plan, index: usize) -> Hello {
        let label = self.seats.label();
        let mut hello = Hello {
            worker: self.name.clone(),
            incarnation: incarnation(index, self.life),
            geometry: Some(model::geometry()),
            pages_total: plan.pages + plan.pages_overstated,
            max_num_seqs: plan.places.0,
            max_batch_tokens: plan.batch_tokens,
            max_model_len: MODEL_LEN_MAX,
            vocab_size: model::VOCAB_SIZE,
            model: "mock".to_owned(),
            device: "sim".to_owned(),
            data_address: address(index),
            transports: vec!["tcp".to_owned()],
            pid: 1,
            timings_json: plan.timings().to_json().unwrap_or_default(),
            role_epoch: label.epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Hello::default()
        };
        hello.set_role(label.role);
        hello
    }
}

/// Random in truth; all that counts is that it is never used again.
pub(crate) fn incarnation(index: usize, life: u32) -> u64 {
    model::mix((index as u64) << 32 | u64::from(life))
}

/// Where a worker's data link listens.
fn address(index: usize) -> String {
    format!("w{index}:1")
}

fn seats_config(plan: &Plan, index: usize, life: u32) -> SeatsConfig {
    SeatsConfig {
        worker: format!("w{index}"),
        incarnation: incarnation(index, life),
        data_address: address(index),
        pages_total: plan.pages,
        num_seqs_max: plan.places.1,
        batch_tokens_max: plan.batch_tokens.max(plan.places.1),
        model_len_max: MODEL_LEN_MAX,
        in_flight_bytes_max: plan.in_flight_bytes,
        timings: plan.timings(),
        role: plan.roles[index],
        nonce_seed: model::mix(plan.seed ^ incarnation(index, life)),
    }
}
