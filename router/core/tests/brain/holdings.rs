//! What decode workers hold now, as far as placing goes by it: tokens come, sequences go.
#![expect(clippy::expect_used, clippy::panic, reason = "a helper of tests")]

use dopd_core::{
    action::Action,
    brain::Brain,
    event::{Event, StepReport},
    fleet::Role::{Decode, Prefill},
    ids::{RequestId, SlotId},
    units::{Micros, Tokens},
};

use crate::{
    decode_places::import_of,
    support::{
        policy::{arrive, fleet, gpu, policy, step, tell},
        report,
    },
};

/// A sequence that decodes at a worker: its session and slot.
fn taken_over(brain: &mut Brain, now: u64, id: u64, prompt: u32) -> (u64, SlotId) {
    let (at, slot) = import_of(&arrive(brain, now, id, prompt)).expect("there is a place");
    let session = at as u64 + 2;
    let said = |opened, arrived| StepReport {
        opened,
        arrived,
        ..report(session, Decode)
    };
    let begun = tell(brain, now + 1, said(vec![slot], vec![]));
    let Some(&Action::Open { seat, .. }) = begun.first() else {
        panic!("{begun:?}");
    };
    let from = seat.slot.0;
    tell(brain, now + 2, step(1, Prefill, &[from], &[]));
    tell(brain, now + 3, said(vec![], vec![(slot, Tokens(1))]));
    tell(brain, now + 4, step(1, Prefill, &[], &[from]));
    (session, slot)
}

fn tell_tokens(brain: &mut Brain, slot: SlotId, tokens: u32) {
    let mut said = step(2, Decode, &[], &[]);
    said.tokens = vec![(slot, Tokens(tokens))];
    tell(brain, 1_001, said);
}

/// What happens to the first of two sequences.
type Then = fn(&mut Brain, SlotId);

#[test]
fn a_place_is_what_its_sequences_hold_now() {
    // Of 1,000 and 1,050 tokens; where does a third go?
    let thens: [(Then, u64); 5] = [
        (|_, _| (), 2),
        (|brain, slot| tell_tokens(brain, slot, 10), 2),
        (|brain, slot| tell_tokens(brain, slot, 90), 3),
        (
            |brain, slot| {
                tell_tokens(brain, slot, 90);
                tell(brain, 1_002, step(2, Decode, &[], &[slot.0]));
            },
            2,
        ),
        (
            |brain, slot| {
                tell_tokens(brain, slot, 90);
                let request = RequestId(1);
                brain.handle(Micros(1_002), Event::RequestCancelled { request });
            },
            2,
        ),
    ];
    for (number, (then, wanted)) in thens.into_iter().enumerate() {
        let workers = [
            gpu(Prefill, 400_000),
            gpu(Decode, 400_000),
            gpu(Decode, 400_000),
        ];
        let mut brain = fleet(policy(), &workers);
        let (first, slot) = taken_over(&mut brain, 0, 1, 1_000);
        let (second, _) = taken_over(&mut brain, 100, 2, 1_050);
        assert_eq!((first, second), (2, 3));
        then(&mut brain, slot);
        let third = import_of(&arrive(&mut brain, 2_000, 3, 100));
        assert_eq!(third.map(|(at, _)| at as u64 + 2), Some(wanted), "{number}");
    }
}
