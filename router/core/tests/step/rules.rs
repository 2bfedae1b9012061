//! The rules one by one, on the calibration of a real device.

use dopd_core::{
    cost::Timings,
    step::{
        Belief, DECODES_MAX, MIXED_TOKENS_MIN, Residents, StepChoice, StepCost, StepMode,
        StepPolicy, StepView, StepWork, choose,
    },
    units::{Micros, Tokens},
};

const NOW: Micros = Micros(10_000_000);

/// A worker with so many residents of so much slack, and one prompt.
struct Scene {
    policy: StepPolicy,
    belief: Belief,
    timings: Timings,
    residents: Residents,
    seqs: u32,
    is_decode: bool,
    prompts: Vec<(u32, u32)>,
    now: Micros,
}

impl Scene {
    /// `spare_ms`: how far each resident is ahead.
    fn new(seqs: u32, spare_ms: u64, prompt: u32) -> Self {
        let policy = StepPolicy::default();
        let mut residents = Residents::new();
        // 101 tokens in the time of 100 less what they are ahead.
        let made = Micros(100 * policy.pace_us(policy.tpot));
        let first = NOW.since(made).plus(Micros::from_millis(spare_ms));
        for _ in 0..seqs {
            residents.join(&policy, NOW, Micros(0), first, 101);
        }
        Self {
            belief: Belief::new(&policy),
            policy,
            timings: Timings::h100_8b(),
            residents,
            seqs,
            is_decode: true,
            prompts: vec![(prompt, 0)],
            now: NOW,
        }
    }

    fn context(&self) -> u64 {
        u64::from(self.seqs) * 1_000
    }

    fn choose(&self) -> StepChoice {
        let view = StepView {
            now: self.now,
            is_decode: self.is_decode,
            tokens_max: 8_192,
            residents: &self.residents,
            decode_seqs: self.seqs,
            decode_context: self.context(),
            prompts: &self.prompts,
        };
        choose(&self.policy, &self.belief, &view, &self.timings)
    }

    fn alone_us(&self, tokens: u32) -> u64 {
        self.timings.prefill_us(Tokens(tokens)).0
    }

    fn mixed_us(&self, tokens: u32) -> u64 {
        let work = StepWork::decode(self.seqs, self.context()).with_prompts(&self.prompts, tokens);
        self.belief
            .expected_us(self.timings.plain_us(work), tokens > 0)
    }

    fn pause(&self) -> u32 {
        match self.choose() {
            StepChoice::Prefill(tokens) => tokens.0,
            other => unreachable!("{other:?} instead of a pause"),
        }
    }

    fn chunk(&self) -> u32 {
        match self.choose() {
            StepChoice::Mixed(tokens) => tokens.0,
            other => unreachable!("{other:?} instead of a mixed step"),
        }
    }
}

#[test]
fn a_pause_takes_what_slack_allows_and_no_more() {
    for spare_ms in [1, 10, 25, 100, 5_000] {
        let scene = Scene::new(40, spare_ms, 8_000);
        let tokens = scene.pause();
        // Each resident gains what a decode step leaves of its pace.
        let gain = scene.policy.pace_us(scene.policy.tpot) - scene.mixed_us(0);
        let time = (spare_ms * 1_000 + gain).min(scene.policy.pause_max.0);
        assert!(scene.alone_us(tokens) <= time, "{spare_ms} ms");
        assert!(scene.alone_us(tokens + 1) > time, "{spare_ms} ms");
    }
}

#[test]
fn no_pause_below_the_least_unless_it_ends_the_prompt() {
    let mut scene = Scene::new(40, 0, 8_000);
    // Behind by what a decode step gains, less 40 ms: too short a pause.
    let gain = scene.policy.pace_us(scene.policy.tpot) - scene.mixed_us(0);
    scene.now = NOW.plus(Micros(gain - 40_000));
    assert_eq!(scene.choose(), StepChoice::Decode);
    scene.prompts = vec![(600, 0), (5_000, 0)];
    let tokens = scene.pause();
    assert!(scene.alone_us(600) < 40_000 && tokens >= 600, "{tokens}");
    scene.prompts = vec![(2_000, 0), (10, 0)];
    assert_eq!(scene.choose(), StepChoice::Decode);
    scene.policy.pause_min = Micros::from_millis(40);
    assert!(scene.alone_us(scene.pause()) <= 40_000);
}

#[test]
fn pauses_share_what_is_left_since_the_last_token() {
    let mut scene = Scene::new(40, 5_000, 8_000);
    scene.now = NOW.plus(Micros::from_millis(45));
    let tokens = scene.pause();
    assert!(scene.alone_us(tokens) <= 55_000 && scene.alone_us(tokens + 1) > 55_000);
    scene.now = NOW.plus(Micros::from_millis(51));
    assert_eq!(scene.choose(), StepChoice::Decode);
    scene.now = NOW.plus(Micros::from_millis(400));
    assert_eq!(scene.choose(), StepChoice::Decode);
}

#[test]
fn the_quantile_leaves_the_hopeless_behind() {
    let mut scene = Scene::new(40, 5_000, 8_000);
    let late = scene
        .residents
        .join(&scene.policy, NOW, Micros(0), Micros(0), 2);
    scene
        .residents
        .join(&scene.policy, NOW, Micros(0), Micros(0), 2);
    scene.seqs = 42;
    scene.pause();
    // A third is more than a twentieth of them.
    scene
        .residents
        .join(&scene.policy, NOW, Micros(0), Micros(0), 2);
    scene.seqs = 43;
    assert_eq!(scene.choose(), StepChoice::Decode);
    scene.residents.leave(late);
    scene.seqs = 42;
    scene.pause();
}

#[test]
fn the_dearer_mixing_is_believed_to_be_the_less_it_is_chosen() {
    let mut scene = Scene::new(40, 5_000, 8_000);
    scene.pause();
    scene.policy.mixed_penalty_start = 0.0;
    scene.belief = Belief::new(&scene.policy);
    let chunk = scene.chunk();
    let tau = scene.policy.tau_us(scene.policy.tpot);
    assert!(scene.mixed_us(chunk) <= tau && scene.mixed_us(chunk + 1) > tau);
}

/// Tokens per extra microsecond, worked out plainly over penalties: mixed exactly where it is more.
#[test]
fn mixed_is_chosen_exactly_where_it_is_cheaper() {
    let mut seen = [0, 0];
    for permille in 0..250 {
        let mut scene = Scene::new(20, 5_000, 8_000);
        scene.policy.mixed_penalty_start = f64::from(permille) / 1_000.0;
        scene.belief = Belief::new(&scene.policy);
        let tau = scene.policy.tau_us(scene.policy.tpot);
        let chunk = (0..8_000)
            .rev()
            .find(|&n| scene.mixed_us(n) <= tau)
            .expect("0 fits");
        let slice = (0..8_000)
            .rev()
            .find(|&n| scene.alone_us(n) <= 100_000)
            .expect("0 fits");
        let extra = scene.mixed_us(chunk) - scene.mixed_us(0);
        let mixing = f64::from(chunk) / extra as f64;
        let pausing = f64::from(slice) / scene.alone_us(slice) as f64;
        let is_mixed = matches!(scene.choose(), StepChoice::Mixed(_));
        assert_eq!(
            is_mixed,
            mixing >= pausing,
            "{permille}: {mixing} {pausing}"
        );
        seen[usize::from(is_mixed)] += 1;
    }
    assert!(
        seen.iter().all(|&count| count > 10),
        "pauses, mixed: {seen:?}"
    );
}

#[test]
fn a_decode_step_near_the_pace_leaves_mixing_alone() {
    let mut scene = Scene::new(40, 5_000, 8_000);
    let decode = scene.mixed_us(0);
    // 0.95 of the pace, and the next microsecond.
    let limit = |tpot: u64| (0.95 * scene.policy.pace_us(Micros(tpot)) as f64 + 0.5).floor() as u64;
    let tpot = (decode..2 * decode)
        .find(|&tpot| limit(tpot) >= decode)
        .expect("some target");
    scene.policy.tpot = Micros(tpot);
    let with_target = |tpot: u64| {
        let mut scene = Scene::new(40, 5_000, 8_000);
        scene.residents = Residents::new();
        (0..40).for_each(|_| {
            scene
                .residents
                .join(&scene.policy, NOW, Micros(tpot), NOW, 500);
        });
        scene
    };
    assert!(matches!(with_target(tpot).choose(), StepChoice::Prefill(_)));
    assert_eq!(with_target(tpot - 1).chunk(), MIXED_TOKENS_MIN);
    // Beyond the target itself nothing is to be saved but the gap.
    let lost = with_target(decode - 1);
    let chunk = lost.chunk();
    let limit = decode + lost.policy.pause_max.0;
    assert!(lost.mixed_us(chunk) <= limit && lost.mixed_us(chunk + 1) > limit);
}

#[test]
fn the_tightest_target_rules() {
    let mut scene = Scene::new(40, 5_000, 8_000);
    scene.policy.mixed_penalty_start = 0.0;
    scene.belief = Belief::new(&scene.policy);
    let tight = scene
        .residents
        .join(&scene.policy, NOW, Micros(40_000), NOW, 500);
    scene.seqs = 41;
    assert!(scene.mixed_us(scene.chunk()) <= scene.policy.tau_us(Micros(40_000)));
    scene.residents.leave(tight);
    scene.seqs = 40;
    assert!(scene.mixed_us(scene.chunk()) > scene.policy.tau_us(Micros(40_000)));
}

#[test]
fn it_mixes_from_time_to_time_to_learn() {
    let mut scene = Scene::new(40, 60_000, 1 << 20);
    let mut since = 0;
    for _ in 0..400 {
        let choice = scene.choose();
        scene.belief.began(choice, true, true);
        match choice {
            StepChoice::Mixed(tokens) => {
                assert_eq!(since, scene.policy.probe_every - 1);
                assert!(tokens.0 >= MIXED_TOKENS_MIN);
                since = 0;
            }
            StepChoice::Prefill(_) => since += 1,
            _ => {}
        }
        // As if a decode step came between all of them.
        scene.residents.stepped(scene.now);
    }
    assert_eq!(scene.belief.steps_mixed(), 400 / 50);
    assert_eq!(scene.belief.steps_paused(), 400 - 400 / 50);
}

#[test]
fn a_prompt_moves_though_nobody_has_time() {
    let mut scene = Scene::new(40, 0, 8_000);
    scene.now = NOW.plus(Micros::from_millis(60_000));
    for _ in 0..DECODES_MAX {
        let choice = scene.choose();
        assert_eq!(choice, StepChoice::Decode);
        scene.belief.began(choice, true, true);
    }
    scene.chunk();
    // Not even a place in the step is left: a pause.
    let view = StepView {
        now: scene.now,
        is_decode: true,
        tokens_max: 40,
        residents: &scene.residents,
        decode_seqs: 40,
        decode_context: 40_000,
        prompts: &scene.prompts,
    };
    let choice = choose(&scene.policy, &scene.belief, &view, &scene.timings);
    assert_eq!(choice, StepChoice::Prefill(Tokens(40)));
    // Without a prompt that waits, decode steps count for nothing.
    scene.belief.began(StepChoice::Decode, true, false);
    assert_eq!(scene.choose(), StepChoice::Decode);
}

#[test]
fn nobody_decodes() {
    let mut scene = Scene::new(0, 0, 8_000);
    let tokens = scene.pause();
    let limit = scene.policy.idle_slice_max.0;
    assert!(scene.alone_us(tokens) <= limit && scene.alone_us(tokens + 1) > limit);
    scene.policy.idle_slice_max = Micros(1);
    assert_eq!(scene.pause(), MIXED_TOKENS_MIN);
    scene.is_decode = false;
    assert_eq!(scene.pause(), 8_000);
    scene.policy.mode = StepMode::Chunk;
    assert_eq!(scene.pause(), 512);
    scene.prompts.clear();
    assert_eq!(scene.choose(), StepChoice::Idle);
}

#[test]
fn baselines_take_what_their_name_says() {
    let mut scene = Scene::new(40, 5_000, 9_000);
    scene.policy.mode = StepMode::Fill;
    assert_eq!(scene.chunk(), 8_192 - 40);
    scene.policy.mode = StepMode::Chunk;
    assert_eq!(scene.chunk(), 512 - 40);
    scene.policy.chunk_tokens = Tokens(40);
    assert_eq!(scene.chunk(), MIXED_TOKENS_MIN);
    scene.policy.mode = StepMode::ChunkInTime;
    let (chunk, tau) = (scene.chunk(), scene.policy.tau_us(scene.policy.tpot));
    assert!(scene.mixed_us(chunk) <= tau && scene.mixed_us(chunk + 1) > tau);
}

/// A device that says nothing of itself fills its steps, as before there was a choice.
#[test]
fn without_timings_steps_are_filled() {
    for mode in [StepMode::PauseOrMix, StepMode::ChunkInTime, StepMode::Fill] {
        let mut scene = Scene::new(40, 0, 9_000);
        scene.timings = Timings::instant();
        scene.policy.mode = mode;
        assert_eq!(scene.chunk(), 8_192 - 40);
    }
}

#[test]
fn the_belief_finds_the_truth_and_bears_lies() {
    let policy = StepPolicy::default();
    for truth in [0.0, 0.07, 0.2, 0.6, 1.5] {
        let mut belief = Belief::new(&policy);
        // Each step is off by up to a tenth, either way.
        for step in 0..400_u64 {
            let noise = [0.9, 1.1, 1.0, 0.95, 1.05][usize::try_from(step % 5).expect("small")];
            belief.measured(20_000, (20_000.0 * (1.0 + truth) * noise) as u64);
        }
        let is = belief.penalty_ratio();
        assert!((is - truth).abs() < 0.04, "{is} for {truth}");
        let before = belief.penalty_ratio();
        belief.measured(20_000, u64::MAX);
        assert!(belief.penalty_ratio() <= before + 0.05 + 1e-9);
        belief.measured(0, 5);
        belief.measured(u64::MAX, 0);
        (0..1_000).for_each(|_| belief.measured(1, u64::MAX));
        assert_eq!(belief.penalty_permille(), 2_000);
        (0..1_000).for_each(|_| belief.measured(1_000, 0));
        assert_eq!(belief.penalty_permille(), 0);
    }
    for start in [f64::NAN, -1.0, f64::INFINITY] {
        let wild = StepPolicy {
            mixed_penalty_start: start,
            ..policy
        };
        assert!((0.0..=2.0).contains(&Belief::new(&wild).penalty_ratio()));
    }
}

/// A measured model stands in for a calibration.
#[test]
fn any_cost_will_do() {
    struct PerToken;
    impl StepCost for PerToken {
        fn plain_us(&self, work: StepWork) -> u64 {
            1_000 * u64::from(work.prefill_tokens + work.decode_seqs)
        }
    }
    let scene = Scene::new(10, 5_000, 500);
    let view = StepView {
        now: NOW,
        is_decode: false,
        tokens_max: 8_192,
        residents: &scene.residents,
        decode_seqs: 10,
        decode_context: 0,
        prompts: &scene.prompts,
    };
    let choice = choose(&scene.policy, &scene.belief, &view, &PerToken);
    assert_eq!(choice, StepChoice::Prefill(Tokens(100)));
}

/// One client's target is no reason to give up everybody else's.
#[test]
fn a_target_that_no_step_meets_holds_nobody_up() {
    for (seqs, mode) in [
        (40, StepMode::PauseOrMix),
        (3, StepMode::PauseOrMix),
        (40, StepMode::ChunkInTime),
    ] {
        let mut scene = Scene::new(seqs, 5_000, 8_000);
        scene.policy.mode = mode;
        scene.seqs += 1;
        let without = scene.choose();
        // A millisecond a token, and far behind: a decode step takes seven.
        let tpot = Micros::from_millis(1);
        scene
            .residents
            .join(&scene.policy, NOW, tpot, Micros(0), 101);
        assert_eq!(scene.choose(), without);
    }
    // Nobody's target is met: they count as they are.
    let mut scene = Scene::new(0, 0, 8_000);
    scene.seqs = 2;
    for ms in [1, 2] {
        let tpot = Micros::from_millis(ms);
        scene.residents.join(&scene.policy, NOW, tpot, NOW, 1);
    }
    assert_eq!(scene.residents.tpot_min(7_000), Some(Micros(1_000)));
    assert!(scene.mixed_us(scene.chunk()) <= scene.mixed_us(0) + scene.policy.pause_max.0);
}
