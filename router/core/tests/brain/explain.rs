//! What the brain tells of its decisions is what it decided.

use dopd_core::{
    brain::{BrainConfig, Chosen, Kept, Task, Verdict},
    event::CloseReason,
    fleet::Role::{Decode, Mixed, Prefill},
    ids::{RequestId, SessionId},
    policy::{Bind, PolicyConfig, Steal},
    request::RejectReason,
    units::Tokens,
};

use crate::support::{
    closed,
    line::{Line, millis},
    plain,
    policy::{arrive, fleet, gpu, policy},
    report, request, said,
};

#[test]
fn who_took_a_stolen_prompt_is_told_among_those_that_were_asked() {
    let workers = [gpu(Prefill, 400_000), gpu(Decode, 400_000)];
    let mut brain = fleet(policy(), &workers);
    for id in 1..=9 {
        arrive(&mut brain, 0, id, 4_000);
    }
    assert_eq!(brain.status().stolen_total, 1);
    let told = brain.explain(&[RequestId(2)]);
    let last = told.decisions.last().expect("it was placed");
    let worker = SessionId(2);
    let why = Kept::Stolen;
    assert_eq!(last.chose, Chosen::Keep { worker, why });
    let row = last.alternatives.iter().find(|row| row.worker == worker);
    let row = row.map(|row| (row.task, row.verdict));
    assert_eq!(row, Some((Task::Steal, Verdict::Chosen)));
    // The first one went to the prefill worker, and decodes at the other.
    let pair = Chosen::Pair {
        prefill: SessionId(1),
        decode: worker,
    };
    let first = brain.explain(&[RequestId(1)]).decisions;
    assert_eq!(first.last().map(|last| last.chose), Some(pair));
    let chosen = |task| {
        let row = first.last()?.alternatives.iter().find(|of| of.task == task);
        row.map(|row| row.verdict)
    };
    assert_eq!(chosen(Task::Prefill), Some(Verdict::Chosen));
    assert_eq!(chosen(Task::Decode), Some(Verdict::Chosen));
}

#[test]
fn a_request_that_found_no_place_in_the_queue_has_an_explanation() {
    let config = BrainConfig {
        queue_requests_max: 1,
        ..plain()
    };
    let mut line = Line::new(config, 1);
    (0..3).for_each(|id| line.arrive(request(id, 5, 1)));
    assert_eq!(line.refused.len(), 1);
    let told = line.brain.explain(&[RequestId(2)]).decisions;
    let why = RejectReason::QueueFull;
    assert_eq!(told[0].chose, Chosen::Reject { why });
    assert_eq!(told[0].saw.prompt_tokens, Tokens(5));
}

#[test]
fn late_ones_are_said_to_be_late_with_their_place_in_the_order() {
    let config = BrainConfig {
        policy: PolicyConfig {
            demote: true,
            ..policy()
        },
        ..plain()
    };
    let mut line = Line::new(config, 1);
    line.arrive(request(0, 1, 1));
    line.arrive(request(1, 500, 1));
    line.wait(millis(5_000));
    line.finish(1);
    let placed = line.brain.explain(&[RequestId(1)]).decisions;
    let keep = |chose| matches!(chose, Chosen::Keep { .. });
    let placed = placed.iter().find(|one| keep(one.chose));
    let placed = placed.expect("it was placed");
    assert!(placed.saw.is_late, "{placed:?}");
    assert!(placed.saw.rank > 0, "{placed:?}");
    assert_eq!(placed.saw.waited_us, millis(5_000).0);
}

#[test]
fn a_target_is_told_until_the_first_token_is_out() {
    let mut line = Line::new(plain(), 1);
    line.arrive(request(0, 4, 9));
    let (seat, _) = line.running[0];
    let mut step = report(1, Mixed);
    step.tokens = vec![(seat.slot, Tokens(2))];
    line.tell(said(step));
    let mut step = report(1, Mixed);
    step.closed = vec![closed(seat.slot.0, CloseReason::Preempted)];
    line.tell(said(step));
    let told = line.brain.explain(&[RequestId(0)]).decisions;
    let replay = |chose| matches!(chose, Chosen::Replay { .. });
    let after = told.iter().find(|one| replay(one.chose)).expect("replayed");
    assert_eq!(after.saw.answer_tokens, Tokens(2));
    assert_eq!(after.saw.target_us, None);
    assert!(told[0].saw.target_us.is_some(), "{:?}", told[0]);
}

#[test]
fn the_newest_decisions_are_told_and_whether_there_were_others() {
    let mut line = Line::new(plain(), 1);
    (0..4).for_each(|id| line.arrive(request(id, 5, 1)));
    let all = line.brain.decisions(1_000);
    assert!(all.decisions.len() > 4 && !all.is_cut);
    let two = line.brain.decisions(2);
    assert!(two.is_cut);
    assert_eq!(two.decisions, all.decisions[all.decisions.len() - 2..]);
}

#[test]
fn why_a_prefill_worker_begins_with_the_answer_is_told() {
    let why = |policy: PolicyConfig, filler: Option<u32>| {
        let mut slow = gpu(Prefill, 400_000);
        slow.timings.handoff_bytes_per_s = 13.4e9;
        let mut brain = fleet(policy, &[slow, gpu(Decode, 40_000)]);
        if let Some(prompt) = filler {
            arrive(&mut brain, 0, 1, prompt);
        }
        arrive(&mut brain, 1, 2, 9_000);
        let told = brain.explain(&[RequestId(2)]).decisions;
        match told.last().map(|last| last.chose) {
            Some(Chosen::Keep {
                worker: SessionId(1),
                why,
            }) => why,
            other => panic!("{other:?}"),
        }
    };
    let early = PolicyConfig {
        bind: Bind::Early,
        steal: Steal::Never,
        ..policy()
    };
    // 8,192 tokens of the last chunk take 80 ms on this link: more than a token may.
    assert_eq!(why(early.clone(), None), Kept::Linger);
    let at_once = PolicyConfig {
        linger_ratio: 0.0,
        ..early.clone()
    };
    assert_eq!(why(at_once, Some(38_000)), Kept::NoPlace);
    let gate = false;
    assert_eq!(why(PolicyConfig { gate, ..early }, None), Kept::Ungated);
}
