//! Who finds no room is overtaken by who does: not for ever, and nobody waits behind it who does not
//! compete with it.

use std::collections::VecDeque;

use dopd_core::{
    action::{Action, OpenKind},
    fleet::Role::{Decode, Prefill},
    policy::{PolicyConfig, Steal},
};

use crate::support::policy::{arrive, fleet, gpu, opens, policy, step, tell, wake};

/// Four sequences of 700 tokens have room beside each other, three and one of 3,000 do not. Short
/// ones keep coming, one for each that ends.
#[test]
fn who_is_owed_its_turn_is_overtaken_no_more_until_there_is_room() {
    const LONG: u64 = 1;
    let mut brain = fleet(policy(), &[gpu(Decode, 4_800)]);
    // Slot and tokens of each, the oldest first.
    let mut running: VecDeque<(u32, u32)> = VecDeque::new();
    let mut placed = Vec::new();
    let mut look = |actions: Vec<Action>, running: &mut VecDeque<(u32, u32)>| {
        for action in actions {
            if let Action::Open { seat, sequence, .. } = action {
                placed.push(sequence.request.0);
                running.push_back((seat.slot.0, 0));
            }
        }
        placed.iter().position(|&id| id == LONG)
    };
    look(arrive(&mut brain, 0, 2, 700), &mut running);
    look(arrive(&mut brain, 0, 3, 700), &mut running);
    look(arrive(&mut brain, 0, 4, 700), &mut running);
    look(arrive(&mut brain, 2, LONG, 3_000), &mut running);
    let before = (5..2_000).find_map(|id| {
        let now = id * 50_000;
        look(arrive(&mut brain, now, id, 700), &mut running);
        for (_, tokens) in &mut running {
            *tokens += 1;
        }
        let slots: Vec<u32> = running.iter().map(|&(slot, _)| slot).collect();
        // As soon as the next one fits, or after 50 tokens.
        let is_over = running.len() > 3 || running.front().is_some_and(|&(_, made)| made == 50);
        let ended = is_over.then(|| running.pop_front()).flatten();
        let ended = ended.map(|(slot, _)| slot);
        let done = step(1, Decode, &slots, ended.as_slice());
        look(tell(&mut brain, now + 1, done), &mut running)
    });
    // Overdue after 12 s, which are 240 short ones; 64 times its tokens are 275 more.
    let is_bounded = before.is_some_and(|before| (500..540).contains(&before));
    assert!(is_bounded, "{before:?} went before it");
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
