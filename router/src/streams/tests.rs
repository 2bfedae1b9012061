//! Which tokens count: cases that real connections meet only by chance.

use std::{
    rc::Rc,
    sync::{Arc, Mutex},
};

use dopd_core::{
    event::CloseReason,
    ids::{RequestId, SeatId, SequenceId, SessionId, SlotId},
};

use dopd_sync::Count;

use super::{
    deliver::LOGPROB_UNKNOWN,
    key::Life,
    messages::{Ended, Flush},
    request::RequestShared,
    sink::{FinishReason, Flow, Sink, TokenChunk, TokenLogprobs},
    table::Streams,
};
use crate::{
    error::Error,
    wire::worker::{Limits, Sampling},
};

const SEQUENCE: SequenceId = SequenceId {
    request: RequestId(1),
    choice: 0,
};
const SOURCE: SeatId = SeatId {
    session: SessionId(2),
    slot: SlotId(3),
};
const SEAT: SeatId = SeatId {
    session: SessionId(1),
    slot: SlotId(3),
};

/// What a sink was told, as text.
type Log = Arc<Mutex<Vec<String>>>;

struct Told(Log);

impl Sink for Told {
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow {
        let chosen: Vec<f32> = chunk.logprobs.iter().map(|entry| entry.chosen).collect();
        let entry = format!("{:?} {chosen:?}", chunk.tokens);
        self.0.lock().unwrap().push(entry);
        Flow::Continue
    }
    fn finish(&mut self, reason: FinishReason) {
        self.0.lock().unwrap().push(format!("{reason:?}"));
    }
    fn fail(&mut self, error: Error) {
        self.0.lock().unwrap().push(error.to_string());
    }
}

fn request(top_logprobs: Option<u32>) -> Arc<RequestShared> {
    Arc::new(RequestShared {
        id: RequestId(1),
        label: "r".to_owned(),
        prompt: vec![1].into(),
        prompt_hash: 0,
        sampling: Sampling {
            top_logprobs,
            ..Sampling::default()
        },
        limits: Limits {
            max_tokens: 4,
            ..Limits::default()
        },
        adjustments: None,
        prompt_logprobs: None,
        traceparent: String::new(),
        tenant: 0,
        slo_tpot_us: 0,
        prefix: None,
        choices: 1,
        priority: 0,
        active: Count::default().enter(),
    })
}

fn streams(top_logprobs: Option<u32>) -> (Streams, Log) {
    let streams = Streams::new(0);
    let log = Log::default();
    let sink = Box::new(Told(Arc::clone(&log)));
    streams.insert(request(top_logprobs), SEQUENCE, sink);
    (streams, log)
}

fn flush(have: u32, tail: u32) -> Flush {
    Flush {
        have,
        tail,
        finished: None,
        is_legacy: false,
    }
}

fn stop() -> Ended {
    Ended {
        why: CloseReason::Stop,
        note: None,
    }
}

fn told(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

#[test]
fn a_legacy_waits_for_its_switch() {
    let (streams, log) = streams(None);
    let import = streams.open_import(SEQUENCE, SEAT).unwrap();
    let current = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.tokens(current.key, current.life, &[7], &[]);
    let legacy = Flush {
        finished: Some(CloseReason::Length),
        is_legacy: true,
        ..flush(0, 1)
    };
    streams.flush(import.key, import.life, legacy, &[7, 8], &[]);
    assert_eq!(told(&log), ["[7] []"], "not before the brain says so");
    streams.switch(SEQUENCE, SEAT);
    assert_eq!(told(&log), ["[8] []", "Length"]);
    assert!(streams.is_empty());
}

#[test]
fn a_replay_forgets_what_was_not_switched_to() {
    let (streams, log) = streams(None);
    let import = streams.open_import(SEQUENCE, SEAT).unwrap();
    streams.open_compute(SEQUENCE, SOURCE).unwrap();
    let legacy = Flush {
        is_legacy: true,
        ..flush(0, 2)
    };
    streams.flush(import.key, import.life, legacy, &[1, 2], &[]);
    let replay = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    assert_eq!(replay.have, 0);
    streams.switch(SEQUENCE, SEAT);
    assert!(told(&log).is_empty());
    streams.tokens(replay.key, replay.life, &[9], &[]);
    assert_eq!(told(&log), ["[9] []"]);
}

#[test]
fn a_flush_that_a_replay_overtook_is_dropped() {
    let (streams, log) = streams(None);
    let import = streams.open_import(SEQUENCE, SEAT).unwrap();
    streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.switch(SEQUENCE, SEAT);
    let replay = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.flush(import.key, import.life, flush(0, 2), &[1, 2], &[]);
    streams.tokens(import.key, import.life, &[3], &[]);
    streams.tokens(replay.key, replay.life, &[4], &[]);
    assert_eq!(told(&log), ["[4] []"]);
}

#[test]
fn a_slot_used_again_by_its_sequence_does_not_confuse() {
    let (streams, log) = streams(None);
    let first = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    let second = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    assert_eq!((first.life, second.life), (Life(1), Life(2)));
    streams.tokens(first.key, first.life, &[1], &[]);
    streams.closed(first.key, first.life, &stop());
    streams.tokens(second.key, second.life, &[2], &[]);
    assert_eq!(told(&log), ["[2] []"]);
}

#[test]
fn a_seat_that_was_given_up_says_nothing_more() {
    let (streams, log) = streams(None);
    let seat = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.tokens(seat.key, seat.life, &[1], &[]);
    streams.close(SEQUENCE, SEAT);
    streams.tokens(seat.key, seat.life, &[2], &[]);
    streams.close(SEQUENCE, SOURCE);
    streams.tokens(seat.key, seat.life, &[3], &[]);
    streams.closed(seat.key, seat.life, &stop());
    assert_eq!(told(&log), ["[1] []", "[2] []"]);
    assert_eq!(
        streams.open_compute(SEQUENCE, SOURCE).unwrap().answer,
        [1, 2]
    );
}

#[test]
fn a_destination_given_up_before_its_tokens_came_says_nothing() {
    let (streams, log) = streams(None);
    let import = streams.open_import(SEQUENCE, SEAT).unwrap();
    let source = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.switch(SEQUENCE, SEAT);
    streams.close(SEQUENCE, SOURCE);
    streams.close(SEQUENCE, SEAT);
    streams.flush(import.key, import.life, flush(0, 2), &[1, 2], &[]);
    streams.tokens(import.key, import.life, &[3], &[]);
    streams.tokens(source.key, source.life, &[1], &[]);
    assert!(told(&log).is_empty());
}

#[test]
fn a_source_still_tells_the_log_probabilities_that_it_alone_knows() {
    let (streams, log) = streams(Some(0));
    let import = streams.open_import(SEQUENCE, SEAT).unwrap();
    let source = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.switch(SEQUENCE, SEAT);
    streams.close(SEQUENCE, SOURCE);
    streams.flush(import.key, import.life, flush(0, 1), &[1], &[]);
    let one = TokenLogprobs {
        chosen: -1.0,
        top: Vec::new(),
    };
    streams.tokens(source.key, source.life, &[1], &[one]);
    assert_eq!(told(&log), ["[1] [-1.0]"]);
    // Now the destination is the current seat, and can be given up as any other.
    streams.close(SEQUENCE, SEAT);
    streams.closed(import.key, import.life, &stop());
    assert!(told(&log).is_empty());
}

#[test]
fn what_arrived_is_not_lost_with_the_destination_whose_source_still_owes_log_probabilities() {
    for is_ejected in [true, false] {
        let (streams, log) = streams(Some(0));
        let import = streams.open_import(SEQUENCE, SEAT).unwrap();
        streams.open_compute(SEQUENCE, SOURCE).unwrap();
        streams.switch(SEQUENCE, SEAT);
        streams.flush(import.key, import.life, flush(0, 1), &[1], &[]);
        assert!(told(&log).is_empty(), "the source tells more of it");
        // The brain has counted one token, so the next Open has to go on behind it.
        if is_ejected {
            assert_eq!(streams.close(SEQUENCE, SEAT), None);
        }
        let next = streams.open_compute(SEQUENCE, SOURCE).unwrap();
        assert_eq!((next.have, next.answer), (1, vec![1]));
        assert_eq!(told(&log), [format!("[1] [{LOGPROB_UNKNOWN:?}]")]);
        streams.tokens(import.key, import.life, &[3], &[]);
        assert!(told(&log).is_empty());
    }
}

#[test]
fn an_answer_never_outgrows_its_limit() {
    let (streams, log) = streams(None);
    let seat = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    streams.tokens(seat.key, seat.life, &[1, 2, 3], &[]);
    streams.tokens(seat.key, seat.life, &[4, 5], &[]);
    streams.tokens(seat.key, seat.life, &[6], &[]);
    assert_eq!(told(&log), ["[1, 2, 3] []", "[4] []"]);
}

#[test]
fn missing_log_probabilities_are_unknown() {
    let (streams, log) = streams(Some(0));
    let seat = streams.open_compute(SEQUENCE, SOURCE).unwrap();
    let one = TokenLogprobs {
        chosen: -1.0,
        top: Vec::new(),
    };
    streams.tokens(seat.key, seat.life, &[1, 2], &[one]);
    assert_eq!(told(&log), [format!("[1, 2] [-1.0, {LOGPROB_UNKNOWN:?}]")]);
}

thread_local! {
    /// The table that [`Reentrant`] uses while the table calls it.
    static TABLE: Rc<Streams> = Rc::new(Streams::new(0));
}

struct Reentrant(Log);

impl Sink for Reentrant {
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow {
        let tokens = chunk.tokens.to_vec();
        TABLE.with(|streams| {
            // Its own stream goes, another comes.
            let key = streams.open_compute(SEQUENCE, SOURCE).unwrap().key;
            assert_eq!(streams.cancel(&[key]), Some(SEQUENCE.request));
            let other = SequenceId {
                choice: 1,
                ..SEQUENCE
            };
            streams.insert(request(None), other, Box::new(Told(Arc::clone(&self.0))));
            let seat = streams.open_compute(other, SOURCE).unwrap();
            streams.tokens(seat.key, seat.life, &tokens, &[]);
        });
        Flow::Continue
    }
    fn finish(&mut self, _: FinishReason) {}
    fn fail(&mut self, _: Error) {}
}

#[test]
fn a_sink_may_use_the_table_that_calls_it() {
    let log = Log::default();
    TABLE.with(|streams| {
        let sink = Box::new(Reentrant(Arc::clone(&log)));
        streams.insert(request(None), SEQUENCE, sink);
        let seat = streams.open_compute(SEQUENCE, SOURCE).unwrap();
        assert_eq!(streams.tokens(seat.key, seat.life, &[5], &[]), None);
        assert_eq!(told(&log), ["[5] []"]);
        assert!(
            streams.open_compute(SEQUENCE, SOURCE).is_none(),
            "its stream is gone"
        );
        assert_eq!(streams.len(), 1);
    });
}
