//! A worker chooses its steps (`dopd_core::step`), learns what mixing costs it, and says so.

use dopd_core::{
    cost::{StepShape, Timings},
    step::{StepMode, StepPolicy},
    units::Micros,
};
use dopd_mock::{
    model,
    seats::{Event, Seats, SeatsConfig, Terms},
};
use dopd_router::{
    wire::worker::{self as wire, Command, Report, Welcome, command, open},
    workers::step,
};

use crate::bench::{SESSION, config, prompt};

/// One worker on a clock of its own, whose steps take what `truth` says.
struct Run {
    seats: Seats,
    truth: Timings,
    now: Micros,
    slots: u32,
}

impl Run {
    fn new(truth: Timings, welcome: &Welcome) -> Self {
        let config = SeatsConfig {
            num_seqs_max: 64,
            batch_tokens_max: 8_192,
            model_len_max: 65_536,
            timings: Timings {
                mixed_penalty_ratio: 0.0,
                ..truth.clone()
            },
            role: wire::Role::Decode,
            ..config("w", 16_384, 3)
        };
        let mut seats = Seats::new(config);
        seats.handle(Micros(0), Event::SessionUp(Terms::of(welcome)));
        Self {
            seats,
            truth,
            now: Micros(1_000_000),
            slots: 0,
        }
    }

    fn open(&mut self, tokens: u32, max_tokens: u32, priority: i32) -> u32 {
        let asked = wire::Open {
            priority,
            ..wire::Open::default()
        };
        self.open_as(asked, tokens, max_tokens)
    }

    /// An Open with all that `asked` says besides its prompt.
    fn open_as(&mut self, asked: wire::Open, tokens: u32, max_tokens: u32) -> u32 {
        let tokens = prompt(tokens);
        let prompt_tokens = u32::try_from(tokens.len()).expect("short");
        let slot = self.slots;
        self.slots += 1;
        let open = wire::Open {
            slot,
            pages: prompt_tokens.div_ceil(model::PAGE_SIZE),
            prompt_tokens,
            prompt_hash: model::prompt_hash(&tokens),
            limits: Some(wire::Limits {
                max_tokens,
                ignore_eos: true,
                ..wire::Limits::default()
            }),
            kind: Some(open::Kind::Compute(wire::Compute {
                prompt: tokens,
                ..wire::Compute::default()
            })),
            ..asked
        };
        let command = Command {
            kind: Some(command::Kind::Open(open)),
        };
        self.seats
            .handle(self.now, Event::Command(SESSION, command));
        slot
    }

    /// One step and its report; `None`: nothing to do.
    fn step(&mut self) -> Option<Report> {
        let batch = self.seats.begin_step(self.now, 1)?;
        let took = self.truth.step_us(StepShape {
            prefill: &batch.prefill,
            decode_seqs: batch.decode_seqs,
            decode_context_sum: batch.decode_context,
        });
        let announced = self.seats.take_report(batch.expected_us())?.next_step_us;
        self.now = self.now.plus(Micros(took));
        let took = u32::try_from(took).expect("short");
        self.seats.finish_step(self.now, &batch, took);
        let report = self.seats.take_report(0)?;
        assert_eq!(
            report.step_expected_us, announced,
            "what was announced was expected"
        );
        let is_mixed = report.step_prefill_tokens > 0 && report.step_decode_seqs > 0;
        assert!(is_mixed || report.step_us == announced, "{report:?}");
        Some(report)
    }
}

fn welcome(policy: &StepPolicy) -> Welcome {
    Welcome {
        session: SESSION,
        step_policy: Some(step::to_wire(policy)),
        ..Welcome::default()
    }
}

/// Thirty residents and a long prompt: they pause for it, and keep their target.
#[test]
fn residents_pause_for_a_long_prompt() {
    let policy = StepPolicy::default();
    let mut run = Run::new(Timings::h100_8b(), &welcome(&policy));
    for _ in 0..30 {
        run.open(500, 2_000, 0);
    }
    // Until all decode, and some slack is there.
    let mut report = run.step().expect("work");
    let (mut began, mut decodes) = (run.now, 0);
    for _ in 0..60 {
        report = run.step().expect("work");
        if report.step_decode_seqs < 30 {
            began = run.now;
        } else {
            decodes += 1;
        }
    }
    assert!(decodes > 40, "{decodes}");
    let more_us = report.decode_step_us - report.step_us;
    assert!((1..=2).contains(&more_us), "a token more of context each");
    run.open(12_000, 10, 0);
    let (before, earlier) = (run.now, report.steps_paused);
    let (mut pauses, mut gap, mut last) = (0, 0, run.now);
    while run.seats.seat(30).is_some_and(|seat| !seat.is_prefilled()) {
        let report = run.step().expect("work");
        if report.step_decode_seqs > 0 {
            gap = gap.max(run.now.since(last).0);
            last = run.now;
            decodes += 1;
        } else {
            pauses += 1;
        }
        let due = decodes * policy.pace_us(policy.tpot);
        assert!(run.now.since(began).0 <= due, "nobody is behind");
    }
    assert!(pauses >= 3, "{pauses}");
    assert!(gap <= 100_000 + 10_000, "{gap} us between two tokens");
    assert!(
        run.now.since(before) < Micros(700_000),
        "{:?}",
        run.now.since(before)
    );
    let report = run.step().expect("work");
    assert_eq!(report.steps_paused - earlier, pauses);
    assert_eq!(report.preempted, 0);
}

/// From a believed fifth to what its mixed steps really cost.
#[test]
fn the_belief_converges_to_the_truth() {
    for truth in [0.0, 0.45] {
        let timings = Timings {
            mixed_penalty_ratio: truth,
            ..Timings::h100_8b()
        };
        let mut run = Run::new(timings, &welcome(&StepPolicy::default()));
        let mut report = Report {
            mixed_penalty_permille: 200,
            ..Report::default()
        };
        for _ in 0..12_000 {
            let live = run.seats.live();
            if live < 20 {
                // Slots are used again once they are free.
                run.slots = (0..64)
                    .find(|&slot| run.seats.seat(slot).is_none())
                    .expect("a slot");
                run.open(1_500, 60, 0);
            }
            report = run.step().expect("work");
        }
        let believed = f64::from(report.mixed_penalty_permille) / 1_000.0;
        assert!((believed - truth).abs() < 0.08, "{believed} for {truth}");
        assert!(report.steps_mixed > 30, "{}", report.steps_mixed);
        // What was learnt and counted outlives the session.
        run.seats.handle(run.now, Event::SessionLost);
        let policy = StepPolicy {
            mixed_penalty_start: 0.9,
            ..StepPolicy::default()
        };
        run.seats
            .handle(run.now, Event::SessionUp(Terms::of(&welcome(&policy))));
        let again = run.seats.take_report(0).expect("a session");
        assert_eq!(again.mixed_penalty_permille, report.mixed_penalty_permille);
        assert_eq!(again.steps_mixed, report.steps_mixed);
    }
}

#[test]
fn a_router_that_says_nothing_gets_full_steps() {
    let silent = Welcome {
        session: SESSION,
        ..Welcome::default()
    };
    let fill = StepPolicy {
        mode: StepMode::Fill,
        ..StepPolicy::default()
    };
    for welcome in [silent, welcome(&fill)] {
        let mut run = Run::new(Timings::h100_8b(), &welcome);
        run.open(500, 100, 0);
        run.step();
        run.open(12_000, 10, 0);
        let report = run.step().expect("work");
        assert_eq!(
            (report.step_decode_seqs, report.step_prefill_tokens),
            (1, 8_191)
        );
        assert_eq!((report.steps_mixed, report.steps_paused), (1, 0));
    }
}

/// Who is more urgent goes first, and among equals who came first.
#[test]
fn prompts_are_cut_in_their_order() {
    let mut run = Run::new(
        Timings::h100_8b(),
        &welcome(&StepPolicy {
            mode: StepMode::Fill,
            ..StepPolicy::default()
        }),
    );
    let slots = [(4_000, 1), (5_000, 0), (3_000, 0), (5_000, -1)]
        .map(|(tokens, priority)| run.open(tokens, 10, priority));
    run.step();
    let computed = slots.map(|slot| run.seats.seat(slot).map(|seat| seat.computed));
    assert_eq!(computed, [Some(0), Some(3_192), Some(0), Some(5_000)]);
}

/// The target of a request, not the policy's, counts where it has one.
#[test]
fn a_request_brings_its_own_target() {
    let pause = |tpot_us: u32| {
        let mut run = Run::new(Timings::h100_8b(), &welcome(&StepPolicy::default()));
        let asked = wire::Open {
            slo_tpot_us: tpot_us,
            ..wire::Open::default()
        };
        run.open_as(asked, 20, 100);
        (0..11).for_each(|_| {
            run.step();
        });
        run.open(12_000, 10, 0);
        let report = run.step().expect("work");
        assert_eq!(report.step_decode_seqs, 0, "{tpot_us} us: a pause");
        report.step_prefill_tokens
    };
    // What ten tokens have gained on the target, and that of the step to come.
    assert_eq!(pause(0), pause(80_000));
    let tight = pause(12_000);
    assert!((1..pause(80_000)).contains(&tight), "{tight}");
}
