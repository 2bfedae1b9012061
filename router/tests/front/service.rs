//! The service without a socket: who is told what, when nobody polls.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use dopd_router::{
    config::records::{LimitsConfig, ModelConfig, SloConfig},
    error::{Error, Reason},
    metrics::{Format, Metrics},
    service::{Answer, Delta, Head, Next, PromptPart, Render, Service, Usage, Wake, Wanted},
    streams::sink::FinishReason,
    tokens::{ByteTokenizer, Framing, ServedModel, Tokenizer, Vocabulary},
    validate::{Params, Prompt, check},
};

use parking_lot::Mutex;

use crate::fake::{Fake, Step, service};

/// Everything that a front would write.
#[derive(Debug, Default)]
struct Written {
    text: String,
    /// Log probabilities of prompts.
    scored: usize,
    pings: usize,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    error: Option<Error>,
}

impl Render for Written {
    fn delta(&mut self, delta: Delta<'_>) {
        self.text.push_str(delta.text);
        let prompt = delta.prompt.into_iter();
        self.scored += prompt.flat_map(PromptPart::entries).count();
        self.finish = delta.finish;
    }

    fn ping(&mut self) {
        self.pings += 1;
    }

    fn done(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    fn failed(&mut self, error: Error) {
        self.error = Some(error);
    }
}

pub(crate) fn run<F: Future<Output = ()>>(
    fake: &Fake,
    limits: LimitsConfig,
    test: impl FnOnce(Arc<Service>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(service(fake.clone(), limits)));
}

async fn submit(service: &Service, params: Params) -> Result<Answer, Error> {
    let spec = check(params, service.limits(), service.model())?;
    let wanted = Wanted {
        wake: Wake::Each,
        token_ids: false,
    };
    service
        .submit(service.arrive(Head::default()).unwrap(), spec, wanted)
        .await
}

pub(crate) fn text(prompt: &str) -> Params {
    Params {
        prompt: Some(Prompt::Text(prompt.to_owned())),
        ..Params::default()
    }
}

/// One fetch if there is something, as hyper would do it.
async fn fetch(answer: &mut Answer, written: &mut Written) -> Option<Next> {
    poll_fn(|cx| match answer.poll(cx, written) {
        Poll::Ready(next) => Poll::Ready(Some(next)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[test]
fn a_reader_that_does_not_come_is_cut_and_its_seat_is_closed() {
    let fake = Fake::new(vec![Step::Text("a"), Step::Gate, Step::Text("b")]);
    run(&fake, LimitsConfig::default(), |service| async move {
        let mut answer = submit(&service, text("x")).await.unwrap();
        answer.first().await.unwrap();
        service.sweep(Instant::now() + Duration::from_secs(29));
        service.sweep(Instant::now() + Duration::from_secs(31));
        let mut written = Written::default();
        assert_eq!(fetch(&mut answer, &mut written).await, Some(Next::End));
        assert_eq!(written.error.unwrap().reason, Reason::ClientTooSlow);
        assert_eq!(written.text, "", "what waited is dropped");
        let page = service.metrics().render(Format::Text);
        assert!(page.contains(r#"code="client_too_slow"} 1"#), "{page}");
    });
    fake.gate.add_permits(1);
}

#[test]
fn an_overdue_request_ends_and_a_silent_one_is_pinged() {
    let fake = Fake::new(vec![Step::Gate]);
    run(&fake, LimitsConfig::default(), |service| async move {
        let mut answer = submit(&service, text("x")).await.unwrap();
        let mut written = Written::default();
        service.sweep(Instant::now() + Duration::from_secs(16));
        assert_eq!(fetch(&mut answer, &mut written).await, Some(Next::More));
        assert_eq!((written.pings, written.error.is_none()), (1, true));
        service.sweep(Instant::now() + Duration::from_secs(601));
        assert_eq!(fetch(&mut answer, &mut written).await, Some(Next::End));
        assert_eq!(written.error.unwrap().reason, Reason::DeadlineExceeded);
    });
}

#[test]
fn a_dropped_answer_cancels_its_request_once() {
    let fake = Fake::new(vec![Step::Text("a"), Step::Gate]);
    run(&fake, LimitsConfig::default(), |service| async move {
        let mut answer = submit(&service, text("x")).await.unwrap();
        answer.first().await.unwrap();
        drop(answer);
        let page = service.metrics().render(Format::Text);
        assert!(page.contains(r#"code="cancelled"} 1"#), "{page}");
    });
    assert_eq!(fake.cancelled.load(Ordering::Relaxed), 1);
}

/// Its work goes on in the pool, and nobody waits for it.
#[test]
fn a_client_that_leaves_while_its_request_is_prepared_is_counted() {
    /// Where this thread loses its core in between, the pool may be done at the first look.
    const TRIES: usize = 50;
    let has_left = || {
        let fake = Fake::new(vec![]);
        run(&fake, LimitsConfig::default(), |service| async move {
            let long = "x".repeat(20_000);
            let mut submitting = Box::pin(submit(&service, text(&long)));
            let is_done = poll_fn(|cx| Poll::Ready(submitting.as_mut().poll(cx).is_ready())).await;
            if is_done {
                return;
            }
            drop(submitting);
            let page = service.metrics().render(Format::Text);
            assert!(page.contains(r#"code="cancelled"} 1"#), "{page}");
        });
        // What was prepared was submitted.
        fake.seen.lock().is_empty()
    };
    assert!((0..TRIES).any(|_| has_left()), "always prepared at once");
}

/// Of how many choices it is: other streams of the thread have their turn in between.
#[test]
fn a_fetch_writes_some_thousand_log_probabilities_of_prompts() {
    let positions = 1_000;
    let scores = Step::PromptLogprobs(1, vec![-1.0; positions - 1]);
    let fake = Fake::new(vec![scores, Step::Finish(FinishReason::Stop)]);
    run(&fake, LimitsConfig::default(), |service| async move {
        let params = Params {
            echo: true,
            top_logprobs: Some(0),
            n: Some(8),
            max_tokens: Some(0),
            ..text(&"x".repeat(positions))
        };
        let mut answer = submit(&service, params).await.unwrap();
        answer.first().await.unwrap();
        tokio::task::yield_now().await;
        let (mut written, mut before, mut turns) = (Written::default(), 0, 0);
        while written.usage.is_none() {
            let fetched = fetch(&mut answer, &mut written).await;
            assert!(written.scored - before <= 2_048, "{}", written.scored);
            before = written.scored;
            if fetched.is_none() {
                turns += 1;
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(written.scored, 8 * positions);
        assert_eq!(turns, 3, "one after each full fetch");
    });
}

/// Whatever waits merges; a backlog of ids gives the same text, stop string included.
#[test]
fn a_late_reader_gets_the_same_answer() {
    let script = vec![
        Step::Text("0123456789"),
        Step::Text("caf\u{e9} "),
        Step::Text("and then ST"),
        Step::Text("OP nothing"),
    ];
    for bytes_max in [1, 12, 1 << 20] {
        let fake = Fake::new(script.clone());
        let stopped = Arc::clone(&fake.stopped);
        let limits = LimitsConfig {
            slow_reader_bytes_max: bytes_max,
            ..LimitsConfig::default()
        };
        run(&fake, limits, |service| async move {
            let params = Params {
                stop: vec!["STOP".to_owned()],
                ..text("x")
            };
            let mut answer = submit(&service, params).await.unwrap();
            while stopped.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            let mut written = Written::default();
            while answer.next(&mut written).await == Next::More {}
            assert_eq!(written.text, "0123456789caf\u{e9} and then ");
            assert_eq!(written.finish, Some(FinishReason::Stop));
            // "STOP" ends with the second byte of the last report.
            assert_eq!(written.usage.unwrap().completion_tokens, 10 + 6 + 11 + 2);
        });
    }
}

#[test]
fn a_hopeless_prompt_is_refused_before_it_is_tokenized() {
    let fake = Fake::new(vec![]);
    run(&fake, LimitsConfig::default(), |service| async move {
        // The longest token of the mock has 12 bytes, its context 1,024 tokens.
        let error = submit(&service, text(&"x".repeat(12 * 1_024)))
            .await
            .unwrap_err();
        assert_eq!(error.reason, Reason::ContextLengthExceeded);
        assert!(error.message.contains("at least 1024 tokens"), "{error}");
        let error = submit(&service, text(&"x".repeat(12 * 1_023)))
            .await
            .unwrap_err();
        assert!(error.message.contains("12276 tokens"), "{error}");
    });
    assert!(fake.seen.lock().is_empty());
}

#[test]
fn a_request_without_seed_gets_one() {
    let fake = Fake::new(vec![Step::Gate]);
    run(&fake, LimitsConfig::default(), |service| async move {
        let first = submit(&service, text("x")).await.unwrap();
        let second = submit(&service, text("x")).await.unwrap();
        assert_ne!(first.id(), second.id());
    });
    let seen = fake.seen.lock();
    assert_ne!(seen[0].seed, seen[1].seed);
}

/// Tokenizes once the other end of `gate` is gone.
#[derive(Debug)]
struct Slow {
    bytes: ByteTokenizer,
    gate: Mutex<mpsc::Receiver<()>>,
    begun: AtomicUsize,
}

impl Tokenizer for Slow {
    fn encode(&self, text: &str, framing: Framing) -> Result<Vec<u32>, Error> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        assert!(self.gate.lock().recv().is_err());
        self.bytes.encode(text, framing)
    }

    fn vocabulary(&self) -> &Vocabulary {
        self.bytes.vocabulary()
    }
}

#[tokio::test]
async fn a_client_that_leaves_makes_no_room_for_another_tokenization() {
    let (closed, gate) = mpsc::channel();
    let slow = Arc::new(Slow {
        bytes: ByteTokenizer::new(),
        gate: Mutex::new(gate),
        begun: AtomicUsize::new(0),
    });
    let mut model = ServedModel::mock(&ModelConfig::default()).unwrap();
    model.tokenizer = Arc::clone(&slow) as Arc<dyn Tokenizer>;
    let (fake, metrics) = (Fake::new(vec![]), Metrics::new("mock"));
    let service = Service::new(
        Arc::new(model),
        LimitsConfig::default(),
        SloConfig::default(),
        fake,
        metrics,
    );
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let long = Prompt::Text("x".repeat(64 << 10));
    for _ in 0..cores + 4 {
        let mut left = pin!(service.tokenize(&long));
        poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_pending())).await;
    }
    drop(closed);
    assert_eq!(service.tokenize(&long).await.unwrap().len(), 64 << 10);
    assert!(slow.begun.load(Ordering::SeqCst) <= cores + 1);
}
