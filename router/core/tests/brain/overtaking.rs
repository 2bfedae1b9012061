//! Decode workers that help let short prompts overtake one that finds no room: not for ever.

use std::collections::VecDeque;

use dopd_core::{action::Action, fleet::Role::Decode};

use crate::support::policy::{arrive, fleet, gpu, policy, step, tell};

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
