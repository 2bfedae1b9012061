//! Who finds no room is overtaken by who does: not for ever, and nobody waits behind it who does
//! not compete with it.

use std::collections::VecDeque;

use dopd_core::{
    action::{Action, OpenKind},
    brain::Brain,
    event::CloseReason,
    fleet::Role::{Decode, Prefill},
    policy::{PolicyConfig, Steal},
    units::Pages,
};

use crate::support::{
    closed,
    policy::{arrive, fleet, gpu, opens, policy, step, tell, wake},
};

const LONG: u64 = 1;

/// A decode worker on which four sequences of 700 tokens have room beside each other, three and
/// one of 3,000 do not. Short ones keep coming.
struct Flood {
    brain: Brain,
    /// Slot and tokens of each that runs, the oldest first.
    running: VecDeque<(u32, u32)>,
    placed: Vec<u64>,
    /// The next short one.
    next: u64,
}

impl Flood {
    fn new() -> Self {
        Self {
            brain: fleet(policy(), &[gpu(Decode, 4_800)]),
            running: VecDeque::new(),
            placed: Vec::new(),
            next: LONG + 1,
        }
    }

    fn look(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let Action::Open { seat, sequence, .. } = action {
                self.placed.push(sequence.request.0);
                self.running.push_back((seat.slot.0, 0));
            }
        }
    }

    fn arrive(&mut self, id: u64, tokens: u32) {
        let now = self.next * 50_000;
        let actions = arrive(&mut self.brain, now, id, tokens);
        self.look(actions);
    }

    /// A short one comes, and a step ends, with it the oldest: as soon as the next one fits, or
    /// after 50 tokens.
    fn round(&mut self) {
        let id = self.next;
        self.next += 1;
        self.arrive(id, 700);
        for (_, tokens) in &mut self.running {
            *tokens += 1;
        }
        let slots: Vec<u32> = self.running.iter().map(|&(slot, _)| slot).collect();
        let oldest = self.running.front();
        let is_over = self.running.len() > 3 || oldest.is_some_and(|&(_, made)| made == 50);
        let ended = is_over.then(|| self.running.pop_front()).flatten();
        let ended = ended.map(|(slot, _)| slot);
        let done = step(1, Decode, &slots, ended.as_slice());
        let actions = tell(&mut self.brain, self.next * 50_000, done);
        self.look(actions);
    }

    /// How many are placed before the long one.
    fn before(&mut self) -> Option<usize> {
        self.placed.clear();
        (0..2_000).find_map(|_| {
            self.round();
            self.placed.iter().position(|&id| id == LONG)
        })
    }
}

#[test]
fn who_is_owed_its_turn_is_overtaken_no_more_until_there_is_room() {
    let mut flood = Flood::new();
    (0..3).for_each(|_| flood.round());
    flood.arrive(LONG, 3_000);
    // Overdue after 12 s, which are 240 short ones; 64 times its tokens are 275 more.
    let before = flood.before();
    let is_bounded = before.is_some_and(|before| (500..540).contains(&before));
    assert!(is_bounded, "{before:?} went before it");
}

/// Its client waits in the middle of an answer.
#[test]
fn who_ran_before_is_not_overtaken_until_there_is_room() {
    let mut flood = Flood::new();
    flood.arrive(LONG, 3_000);
    let (slot, _) = flood.running[0];
    tell(&mut flood.brain, 100_001, step(1, Decode, &[slot], &[]));
    flood.round();
    flood.running.pop_front();
    // Its pages go to others, who are soon gone: there is no room at first.
    let mut preempted = step(1, Decode, &[], &[]);
    preempted.closed = vec![closed(slot, CloseReason::Preempted)];
    preempted.load.pages_fenced = Pages(150);
    let actions = tell(&mut flood.brain, 150_001, preempted);
    flood.look(actions);
    assert_eq!(flood.brain.status().replays_total, 1);
    let before = flood.before();
    assert!(
        before.is_some_and(|before| before < 4),
        "{before:?} went before it"
    );
}

/// Four that fit nowhere are no reason for the fifth to stay where it is.
#[test]
fn everybody_who_is_to_move_on_has_a_turn_to_look_for_a_place() {
    let no_gate = PolicyConfig {
        gate: false,
        steal: Steal::Never,
        ..policy()
    };
    let mut brain = fleet(no_gate, &[gpu(Prefill, 400_000), gpu(Decode, 40_000)]);
    let mut moves = Vec::new();
    for id in 1..=6_u32 {
        let tokens = if id < 6 { 20_000 } else { 1_000 };
        let now = u64::from(id) * 1_000_000;
        arrive(&mut brain, now, id.into(), tokens);
        let done = tell(&mut brain, now + 500_000, step(1, Prefill, &[id - 1], &[]));
        moves.extend(opens(&done));
    }
    moves.extend(opens(&wake(&mut brain, 9_000_000)));
    // Beside the first one there is room for the last.
    assert_eq!(moves, [(1, 2, OpenKind::Import), (6, 2, OpenKind::Import)]);
}
