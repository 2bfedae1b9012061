//! A sink that records what it is told, and its reading end.

use dopd_router::{
    error::Error,
    streams::sink::{FinishReason, Flow, Sink, TokenChunk, TokenLogprobs},
};
use tokio::sync::mpsc;

use super::PATIENCE;

/// What a sink was told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Tokens(Vec<u32>, Vec<TokenLogprobs>),
    Prompt(u32, Vec<TokenLogprobs>),
    Finish(FinishReason),
    Fail(Error),
}

/// Records; wants no more once it has `stop_after` tokens.
pub(crate) struct Recorder {
    told: mpsc::Sender<Told>,
    tokens: usize,
    stop_after: usize,
}

/// The answer as a client would read it.
pub(crate) struct Answer {
    told: mpsc::Receiver<Told>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
}

/// A sink and its reading end.
pub(crate) fn recorder(stop_after: usize) -> (Box<dyn Sink>, Answer) {
    let (sender, receiver) = mpsc::channel(10_000);
    let recorder = Recorder {
        told: sender,
        tokens: 0,
        stop_after,
    };
    let answer = Answer {
        told: receiver,
        tokens: Vec::new(),
        logprobs: Vec::new(),
    };
    (Box::new(recorder), answer)
}

impl Sink for Recorder {
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow {
        self.tokens += chunk.tokens.len();
        let told = Told::Tokens(chunk.tokens.to_vec(), chunk.logprobs.to_vec());
        if self.told.try_send(told).is_err() || self.tokens >= self.stop_after {
            return Flow::Stop;
        }
        Flow::Continue
    }

    fn prompt_logprobs(&mut self, start: u32, logprobs: &[TokenLogprobs]) {
        drop(self.told.try_send(Told::Prompt(start, logprobs.to_vec())));
    }

    fn finish(&mut self, reason: FinishReason) {
        drop(self.told.try_send(Told::Finish(reason)));
    }

    fn fail(&mut self, error: Error) {
        drop(self.told.try_send(Told::Fail(error)));
    }
}

impl Answer {
    /// The next thing that the sink was told; `None` once the sink is gone.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        let told = (tokio::time::timeout(PATIENCE, self.told.recv()).await)
            .expect("nothing reached the sink");
        if let Some(Told::Tokens(tokens, logprobs)) = &told {
            self.tokens.extend_from_slice(tokens);
            self.logprobs.extend_from_slice(logprobs);
        }
        told
    }

    /// Reads until there are `count` tokens in all; exactly `count`.
    pub(crate) async fn until(&mut self, count: usize) -> &[u32] {
        while self.tokens.len() < count {
            match self.next().await {
                Some(Told::Tokens(..)) => {}
                other => panic!("{other:?} after {:?}, wanted {count}", self.tokens),
            }
        }
        assert_eq!(self.tokens.len(), count, "{:?}", self.tokens);
        &self.tokens
    }

    /// Reads to the end; how it finished.
    pub(crate) async fn finish(&mut self) -> FinishReason {
        loop {
            match self.next().await {
                Some(Told::Tokens(..)) => {}
                Some(Told::Finish(reason)) => {
                    assert_eq!(self.next().await, None, "the sink outlived its finish");
                    return reason;
                }
                other => panic!("{other:?} instead of a finish"),
            }
        }
    }

    /// Reads to the end; why it failed.
    pub(crate) async fn fail(&mut self) -> Error {
        loop {
            match self.next().await {
                Some(Told::Tokens(..)) => {}
                Some(Told::Fail(error)) => {
                    assert_eq!(self.next().await, None, "the sink outlived its failure");
                    return error;
                }
                other => panic!("{other:?} instead of a failure"),
            }
        }
    }

    /// Reads to the end of the sink, which must not have been told of any end.
    pub(crate) async fn gone(&mut self) {
        while let Some(told) = self.next().await {
            assert!(matches!(told, Told::Tokens(..)), "{told:?} after the end");
        }
    }
}
