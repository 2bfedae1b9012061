//! From tokens to an answer as its reader gets it: however reports cut the tokens, and whenever
//! the reader comes, it is one text.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use proptest::{prelude::*, sample::Index};

use super::{
    Delta, Next, Render, Usage, Wake, Wanted,
    outbox::{Outbox, OutboxConfig},
    prompt::{PreparedPrompt, Prompt},
    record::Asked,
    record_tests::record,
    text::{AnswerText, TextForm},
};
use crate::{
    error::Error,
    metrics::SloTargets,
    streams::sink::{FinishReason, Flow, TokenChunk},
    tokens::{Framing, StopStrings, Tokenizer, Vocabulary},
};

/// Token i has the i-th piece of a text.
#[derive(Debug)]
struct Pieces(Vocabulary);

impl Tokenizer for Pieces {
    fn encode(&self, _: &str, _: Framing) -> Result<Vec<u32>, Error> {
        Ok(Vec::new())
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.0
    }
}

/// What a reader has seen.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    text: String,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    prompts: usize,
}

impl Render for Seen {
    fn delta(&mut self, delta: Delta<'_>) {
        assert!(self.finish.is_none(), "nothing comes after the end");
        self.text.push_str(delta.text);
        self.tokens.extend_from_slice(delta.tokens);
        self.finish = delta.finish;
        self.prompts += usize::from(delta.prompt.is_some());
    }

    fn ping(&mut self) {}

    fn done(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    fn failed(&mut self, error: Error) {
        panic!("{error}");
    }
}

/// An answer: pieces of its text, what ends it, how it comes and is read.
#[derive(Clone, Debug)]
struct Script {
    pieces: Vec<Vec<u8>>,
    stops: Vec<String>,
    include_stop: bool,
    min_tokens: u32,
    reason: FinishReason,
    /// Tokens of each report, and whether the reader comes after it.
    reports: Vec<(usize, bool)>,
    bytes_max: usize,
}

impl Script {
    fn text(&self) -> AnswerText {
        let pieces = self.pieces.iter().map(|piece| (piece.clone(), false));
        AnswerText::new(
            Arc::new(Pieces(Vocabulary::new(pieces))),
            TextForm {
                stops: StopStrings::new(&self.stops),
                include_stop: self.include_stop,
                min_tokens: self.min_tokens,
                skip_special: true,
                ..TextForm::default()
            },
        )
    }

    fn outbox(&self, wake: Wake) -> Arc<Outbox> {
        let prompt = PreparedPrompt {
            tokens: vec![0].into(),
            text: String::new(),
            max_tokens: u32::MAX,
        };
        let asked = Asked {
            prompt_tokens: 1,
            choices: 1,
            choices_each: 1,
            limit_tokens: u32::MAX,
            targets: SloTargets::default(),
            operation: "text_completion",
        };
        let config = OutboxConfig {
            choices: 1,
            wanted: Wanted {
                wake,
                token_ids: true,
            },
            drops_answer: false,
            bytes_max: self.bytes_max,
            deadline: Instant::now(),
        };
        Outbox::new(config, vec![Prompt::new(&prompt, false)], record(asked))
    }

    /// Plays the script, with its reports and a reader, or at once and read at the end.
    fn play(&self, wake: Wake) -> Seen {
        let (outbox, mut text) = (self.outbox(wake), self.text());
        let mut seen = Seen::default();
        let tokens: Vec<u32> = (0_u32..).take(self.pieces.len()).collect();
        let mut rest = tokens.as_slice();
        let mut reports = self.reports.iter();
        let mut flow = Flow::Continue;
        while !rest.is_empty() && flow == Flow::Continue {
            let whole = (rest.len(), false);
            let (count, is_read) = match wake {
                Wake::Each => reports.next().copied().unwrap_or(whole),
                Wake::End => whole,
            };
            let (tokens, later) = rest.split_at(count.min(rest.len()));
            let chunk = TokenChunk {
                tokens,
                logprobs: &[],
            };
            flow = outbox.push(0, &mut text, chunk);
            rest = later;
            if is_read {
                read(&outbox, &mut seen);
            }
        }
        if flow == Flow::Continue {
            outbox.finish(0, &mut text, self.reason);
        }
        read(&outbox, &mut seen);
        seen
    }

    /// The same rules on all bytes at once, by brute force.
    fn expected(&self) -> (String, FinishReason) {
        let mut bytes = self.pieces.concat();
        if self.reason == FinishReason::Length {
            bytes.truncate(bytes.len() - open_bytes(&bytes));
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for end in 0..=text.len() {
            let complete = |stop: &&String| text.as_bytes()[..end].ends_with(stop.as_bytes());
            let longest = self.stops.iter().filter(complete).map(String::len).max();
            if let Some(length) = longest {
                let end = if self.include_stop { end } else { end - length };
                return (text[..end].to_owned(), FinishReason::Stop);
            }
        }
        (text, self.reason)
    }
}

fn read(outbox: &Outbox, seen: &mut Seen) {
    let context = Context::from_waker(Waker::noop());
    while let Poll::Ready(next) = outbox.poll(&context, seen) {
        if next == Next::End {
            break;
        }
    }
}

/// Bytes at the end that begin a character.
fn open_bytes(bytes: &[u8]) -> usize {
    let tail = |length: &usize| {
        let tail = &bytes[bytes.len() - length..];
        std::str::from_utf8(tail).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(tail).unwrap_or(0)
}

/// Letters of stop strings, characters of all widths, broken ones, noise; cut anywhere.
fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let part = prop_oneof![
        4 => "[ab\u{e9}]{0,4}".prop_map(String::into_bytes),
        1 => ".{0,3}".prop_map(String::into_bytes),
        1 => Just("\u{1F600}".as_bytes()[..3].to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..3),
    ];
    let text = proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat());
    let cuts = proptest::collection::vec(any::<Index>(), 0..24);
    (text, cuts).prop_map(|(text, cuts)| {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(text.len());
        let mut start = 0;
        let mut pieces = Vec::new();
        for cut in cuts {
            pieces.push(text[start..cut].to_vec());
            start = cut;
        }
        pieces
    })
}

fn script() -> impl Strategy<Value = Script> {
    (
        pieces(),
        proptest::collection::vec("[ab\u{e9}]{1,4}", 0..3),
        any::<bool>(),
        prop_oneof![3 => Just(0_u32), 1 => 0..6_u32],
        prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length)],
        proptest::collection::vec((1..4_usize, any::<bool>()), 0..12),
        prop_oneof![Just(1_usize), 1..64_usize, Just(1 << 20)],
    )
        .prop_map(
            |(pieces, stops, include_stop, min_tokens, reason, reports, bytes_max)| Script {
                pieces,
                stops,
                include_stop,
                min_tokens,
                reason,
                reports,
                bytes_max,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_stream_is_the_whole_answer_in_pieces(script in script()) {
        let (stream, whole) = (script.play(Wake::Each), script.play(Wake::End));
        prop_assert_eq!(&stream, &whole);
        prop_assert_eq!(stream.prompts, 1);
        let used = stream.usage.unwrap().completion_tokens;
        prop_assert_eq!(used, stream.tokens.len() as u64);
        if script.min_tokens == 0 {
            let (text, finish) = script.expected();
            prop_assert_eq!(stream.text, text);
            prop_assert_eq!(stream.finish, Some(finish));
        }
    }

    #[test]
    fn a_valid_text_has_no_replacement_character(text in "[^\u{fffd}]{1,12}", cut in any::<Index>()) {
        let bytes = text.as_bytes();
        let end = 1 + cut.index(bytes.len());
        let script = Script {
            pieces: bytes[..end].iter().map(|byte| vec![*byte]).collect(),
            stops: Vec::new(),
            include_stop: false,
            min_tokens: 0,
            reason: FinishReason::Length,
            reports: vec![(1, true); end],
            bytes_max: 1,
        };
        let seen = script.play(Wake::Each);
        prop_assert!(text.starts_with(&seen.text), "{:?}", seen.text);
    }
}
