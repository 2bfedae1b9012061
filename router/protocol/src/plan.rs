//! What a seed stands for: a fleet, its clients, and the faults that befall them.

use dopd_core::{cost::Timings, units::Micros};
use dopd_router::wire::worker::{KvCheck, Role};

use crate::random::Random;

/// Faults begin and end before this.
pub(crate) const FAULTS_END: Micros = Micros::from_millis(11_000);
/// Longest prompt plus answer.
pub(crate) const MODEL_LEN_MAX: u32 = 256;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) at: Micros,
    pub(crate) prompt: u32,
    pub(crate) max_tokens: u32,
    pub(crate) choices: u8,
    pub(crate) seed: u64,
    pub(crate) is_greedy: bool,
    pub(crate) top_logprobs: Option<u32>,
    /// A stop string matches after so many tokens.
    pub(crate) stop_after: Option<u64>,
    /// The client goes away.
    pub(crate) cancel: Option<Micros>,
    /// How long the client waits.
    pub(crate) patience: Micros,
    pub(crate) priority: i32,
    pub(crate) tenant: u64,
    /// It moves at these times, if it runs.
    pub(crate) moves: Vec<Micros>,
}

/// What goes wrong. Workers are named by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process dies and starts again; quiet: its host is gone with it, nobody is told.
    Crash {
        worker: usize,
        down: Micros,
        is_quiet: bool,
    },
    /// SIGSTOP and SIGCONT.
    Freeze { worker: usize, time: Micros },
    /// The step at hand does not end for so long; heartbeats go on.
    Stick { worker: usize, time: Micros },
    /// The stream breaks; each end sees it later by so much.
    BreakStream {
        worker: usize,
        router_sees: Micros,
        worker_sees: Micros,
    },
    /// Nothing arrives on the stream: bit 0 to the router, bit 1 to the worker.
    HoldStream {
        worker: usize,
        ways: u8,
        time: Micros,
    },
    /// A data link breaks; each end sees it later by so much.
    BreakLink {
        pick: u64,
        source_sees: Micros,
        target_sees: Micros,
    },
    /// Nothing arrives on a data link: bit 0 forward, bit 1 backward.
    HoldLink { pick: u64, ways: u8, time: Micros },
    /// The next message of a link other than a write is lost or comes twice.
    Tamper { pick: u64, is_doubled: bool },
    /// One bit of a page on its way.
    Flip { pick: u64 },
    /// A seat loses its pages.
    Preempt { worker: usize, pick: u64 },
    /// SIGTERM: takes nothing new, ends when empty, starts again.
    Drain { worker: usize },
    /// The router labels it anew.
    Role { worker: usize, role: Role },
    /// The router's process ends and starts again.
    RestartRouter,
    /// The router's threads stand still.
    StallRouter { time: Micros },
    /// A report of the session before comes on the new stream.
    OldReport { worker: usize },
    /// A command of the session before comes on the new stream.
    OldCommand { worker: usize },
}

impl Fault {
    /// The same at another worker; `None`: it befalls no worker.
    pub(crate) fn at(self, worker: usize) -> Option<Self> {
        let mut fault = self;
        match &mut fault {
            Self::Crash { worker: at, .. }
            | Self::Freeze { worker: at, .. }
            | Self::Stick { worker: at, .. }
            | Self::BreakStream { worker: at, .. }
            | Self::HoldStream { worker: at, .. }
            | Self::Preempt { worker: at, .. }
            | Self::Drain { worker: at }
            | Self::Role { worker: at, .. } => *at = worker,
            _ => return None,
        }
        Some(fault)
    }
}

/// A seed, spelt out.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) roles: Vec<Role>,
    pub(crate) pages: u32,
    /// Workers say that they have so many pages more, and Opens reach them with what they hold at
    /// once and this many: so sequences grow, and run out of pages.
    pub(crate) pages_overstated: u32,
    pub(crate) pages_spare: Option<u32>,
    /// Places that workers announce, and that they have.
    pub(crate) places: (u32, u32),
    pub(crate) batch_tokens: u32,
    pub(crate) fronts: u16,
    pub(crate) kv_check: KvCheck,
    /// Time of a step in microseconds, and of each token in it.
    pub(crate) step_us: u64,
    pub(crate) prompt_token_us: u64,
    /// Usual way of a message.
    pub(crate) delay_us: u64,
    /// Clocks run at so many thousandths of true time: the router's, then the workers'.
    pub(crate) rates: Vec<u64>,
    pub(crate) in_flight_bytes: u32,
    pub(crate) asks: Vec<Ask>,
    /// With when; true: from then on it waits for a hand-off to strike at.
    pub(crate) faults: Vec<(Micros, Fault, bool)>,
    /// Some fault needs messages of the session before.
    pub(crate) has_old_messages: bool,
}

impl Plan {
    /// What the seed stands for.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let random = &mut random;
        let roles = roles(random);
        let (pages, delay_us) = (
            narrow(random.between(16, 40)),
            [50, 300, 2_000][random.index(3)],
        );
        let places = narrow(random.between(2, 8));
        let spare = if random.percent(20) { 2 } else { 0 };
        let is_skewed = random.percent(30);
        let rates = (0..=roles.len())
            .map(|_| {
                if is_skewed {
                    random.between(700, 1_300)
                } else {
                    1_000
                }
            })
            .collect();
        let kv_check = match random.between(0, 9) {
            0 => KvCheck::Off,
            1..=3 => KvCheck::Header,
            _ => KvCheck::Full,
        };
        let count = random.between(2, 14);
        let asks = (0..count).map(|_| ask(random, pages)).collect();
        let faults = faults(random, roles.len(), kv_check);
        let pages_spare = random.percent(50).then(|| narrow(random.between(0, 2)));
        // Enough for the longest request alone, too few for all.
        let told = pages;
        let pages = pages_spare.map_or(pages, |_| narrow(random.between(11, 16)));
        Self {
            seed,
            pages,
            pages_overstated: told - pages,
            pages_spare,
            places: (places + spare, places),
            batch_tokens: [16, 48, 128][random.index(3)],
            fronts: if random.percent(50) { 1 } else { 2 },
            kv_check,
            step_us: random.between(500, 30_000),
            prompt_token_us: random.between(1, 300),
            delay_us,
            rates,
            in_flight_bytes: [256, 512, 1 << 20][random.index(3)],
            asks,
            has_old_messages: faults.iter().any(|(_, fault, _)| {
                matches!(fault, Fault::OldReport { .. } | Fault::OldCommand { .. })
            }),
            faults,
            roles,
        }
    }

    /// What steps take, in truth give or take a fifth, and what workers say of them.
    pub(crate) fn timings(&self) -> Timings {
        Timings {
            name: "plan".to_owned(),
            step_prefill_us: self.step_us as f64,
            step_decode_us: self.step_us as f64,
            compute_us_per_token: self.prompt_token_us as f64,
            mixed_penalty_ratio: 0.2,
            ..Timings::instant()
        }
    }

    /// Nothing goes wrong: every request gets its answer.
    pub(crate) fn is_calm(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Fleets of two to four: split, mixed, or anything.
fn roles(random: &mut Random) -> Vec<Role> {
    use Role::{Decode, Mixed, Prefill};
    let fleets: [&[Role]; 8] = [
        &[Prefill, Decode],
        &[Prefill, Decode, Decode],
        &[Prefill, Prefill, Decode, Decode],
        &[Prefill, Prefill, Decode],
        &[Mixed, Mixed],
        &[Mixed, Mixed, Mixed],
        &[Prefill, Decode, Mixed],
        &[Prefill, Decode, Mixed, Mixed],
    ];
    fleets[random.index(fleets.len())].to_vec()
}

fn ask(random: &mut Random, pages: u32) -> Ask {
    let ms = |random: &mut Random, low, high| Micros::from_millis(random.between(low, high));
    let most = u64::from(pages * 16).min(160);
    let prompt = match random.between(0, 9) {
        0..=6 => random.between(1, most / 2),
        // Just at the borders of a page.
        7 => 16 * random.between(1, most / 32),
        8 => 16 * random.between(1, most / 32) + 1,
        _ => random.between(1, 8),
    };
    let max_tokens = match random.between(0, 9) {
        0 => 1,
        1..=3 => random.between(2, 12),
        _ => random.between(10, 70),
    };
    let at = ms(random, 10, 5_000);
    let is_short = random.percent(6);
    Ask {
        at,
        prompt: narrow(prompt),
        max_tokens: narrow(max_tokens),
        choices: if random.percent(20) { 3 } else { 1 },
        seed: random.any(),
        is_greedy: random.percent(50),
        top_logprobs: random.percent(30).then(|| narrow(random.between(0, 2))),
        stop_after: random.percent(12).then(|| random.between(1, max_tokens)),
        cancel: random
            .percent(15)
            .then(|| at.plus(Micros(random.between(0, 1_500_000)))),
        patience: if is_short {
            ms(random, 20, 2_000)
        } else {
            ms(random, 60_000, 90_000)
        },
        priority: i32::from(random.percent(20)),
        tenant: random.between(0, 2),
        moves: (0..random.between(0, 3))
            .map(|_| at.plus(Micros(random.between(1_000, 1_500_000))))
            .collect(),
    }
}

fn faults(random: &mut Random, workers: usize, kv_check: KvCheck) -> Vec<(Micros, Fault, bool)> {
    let count = match random.between(0, 9) {
        0 => 0,
        1..=4 => random.between(1, 3),
        5..=7 => random.between(3, 10),
        _ => random.between(10, 30),
    };
    // Some seeds know one kind of fault only: what it does alone is seen best.
    let only = random.percent(40).then(|| random.between(0, KINDS - 1));
    let mut faults: Vec<(Micros, Fault, bool)> = (0..count)
        .map(|_| {
            let at = Micros(random.between(20_000, 5_500_000));
            let kind = only.unwrap_or_else(|| random.between(0, KINDS - 1));
            (at, fault(random, kind, workers), random.percent(50))
        })
        .filter(|(_, fault, _)| kv_check != KvCheck::Off || !matches!(fault, Fault::Flip { .. }))
        .collect();
    faults.sort_by_key(|&(at, ..)| at);
    faults
}

/// Kinds that `fault` knows.
const KINDS: u64 = 21;

fn fault(random: &mut Random, kind: u64, workers: usize) -> Fault {
    let worker = random.index(workers);
    let ms = |random: &mut Random, low, high| Micros::from_millis(random.between(low, high));
    let pick = random.any();
    let sees = |random: &mut Random| match random.between(0, 3) {
        0 => Micros(0),
        1 => Micros(random.between(0, 5_000)),
        2 => Micros(random.between(0, 400_000)),
        _ => Micros(random.between(0, 4_000_000)),
    };
    match kind {
        0 | 1 => Fault::Crash {
            worker,
            down: ms(random, 1, 2_000),
            is_quiet: random.percent(25),
        },
        2 => Fault::Freeze {
            worker,
            time: ms(random, 50, 5_000),
        },
        3 => Fault::Stick {
            worker,
            time: ms(random, 100, 5_000),
        },
        4 | 5 => Fault::BreakStream {
            worker,
            router_sees: sees(random),
            worker_sees: sees(random),
        },
        6 => Fault::HoldStream {
            worker,
            ways: narrow8(random.between(1, 3)),
            time: ms(random, 50, 4_000),
        },
        7 | 8 => Fault::BreakLink {
            pick,
            source_sees: sees(random),
            target_sees: sees(random),
        },
        9 | 10 => Fault::HoldLink {
            pick,
            ways: narrow8(random.between(1, 3)),
            time: ms(random, 10, 3_000),
        },
        11 | 12 => Fault::Tamper {
            pick,
            is_doubled: random.percent(50),
        },
        13 | 14 => Fault::Flip { pick },
        15 => Fault::Preempt { worker, pick },
        16 => Fault::Drain { worker },
        17 => Fault::Role {
            worker,
            role: [Role::Prefill, Role::Decode, Role::Mixed][random.index(3)],
        },
        18 if random.percent(30) => Fault::RestartRouter,
        18 => Fault::StallRouter {
            time: ms(random, 50, 4_000),
        },
        19 => Fault::OldReport { worker },
        _ => Fault::OldCommand { worker },
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn narrow8(value: u64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}
