//! The gRPC front through a real socket, with tonic's own client.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use dopd_router::{
    auth::Gate,
    config::records::{GrpcConfig, LimitsConfig},
    drain::Stop,
    error::{Error, Reason},
    streams::sink::{FinishReason, TokenLogprobs},
    wire::v1::{
        self, AnswerOptions, GenerateRequest, GenerateResponse, Sampling, TokenIds,
        generate_request::Prompt, generate_response::Event,
        inference_service_client::InferenceServiceClient,
    },
};
use tokio::{net::TcpListener, task::LocalSet};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};
use tonic_types::StatusExt;

use crate::fake::{Fake, Step, service};

type Client = InferenceServiceClient<Channel>;

/// Runs `test` beside a gRPC server; both end together.
pub(crate) fn serve<F: Future<Output = ()>>(
    fake: Fake,
    config: GrpcConfig,
    test: impl FnOnce(Channel) -> F,
) {
    with_gate(fake, Gate::default(), config, test);
}

/// The same behind `gate`.
pub(crate) fn with_gate<F: Future<Output = ()>>(
    fake: Fake,
    gate: Gate,
    config: GrpcConfig,
    test: impl FnOnce(Channel) -> F,
) {
    at(
        fake,
        gate,
        config,
        LimitsConfig::default(),
        |address| async move {
            let channel = Channel::from_shared(format!("http://{address}")).unwrap();
            test(channel.connect().await.unwrap()).await;
        },
    );
}

/// Runs `test` with the address of a gRPC server.
pub(crate) fn serve_at<F: Future<Output = ()>>(
    fake: Fake,
    config: GrpcConfig,
    test: impl FnOnce(SocketAddr) -> F,
) {
    at(fake, Gate::default(), config, LimitsConfig::default(), test);
}

pub(crate) fn at<F: Future<Output = ()>>(
    fake: Fake,
    gate: Gate,
    config: GrpcConfig,
    limits: LimitsConfig,
    test: impl FnOnce(SocketAddr) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Stop::default();
        let service = service(fake, limits);
        let gate = Arc::new(gate);
        let server = dopd_router::grpc::serve(listener, service, gate, config, stop.clone());
        let server = tokio::task::spawn_local(server);
        test(address).await;
        stop.end.cancel();
        server.await.unwrap();
    });
}

pub(crate) fn text(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text(prompt.to_owned())),
        ..GenerateRequest::default()
    }
}

/// All events of a call, or its status.
async fn call(
    channel: Channel,
    request: impl tonic::IntoRequest<GenerateRequest>,
) -> Result<Vec<GenerateResponse>, Status> {
    let mut stream = Client::new(channel).generate(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event);
    }
    Ok(events)
}

#[test]
fn events_come_in_order_without_a_gap() {
    let entry = TokenLogprobs {
        chosen: -0.5,
        top: vec![(66, -0.25)],
    };
    let script = vec![
        Step::Text("Hel"),
        Step::Logprobs(vec![65], vec![entry]),
        Step::Finish(FinishReason::Length),
    ];
    serve(
        Fake::new(script),
        GrpcConfig::default(),
        |channel| async move {
            let mut request = text("hi");
            request.options.get_or_insert_default().n = Some(2);
            let events = call(channel, request).await.unwrap();
            let numbers: Vec<u64> = events.iter().map(|event| event.sequence_number).collect();
            let expected: Vec<u64> = (0..events.len() as u64).collect();
            assert_eq!(numbers, expected);
            let Some(Event::Started(started)) = &events[0].event else {
                panic!("the first event is {:?}", events[0]);
            };
            assert_eq!((started.model.as_str(), started.prompt_tokens), ("mock", 2));
            assert_eq!(started.request_id.len(), 32);
            for choice in 0..2 {
                let mut answer = String::new();
                let mut finished = 0;
                for event in &events {
                    match &event.event {
                        Some(Event::Delta(delta)) if delta.choice == choice => {
                            assert_eq!(finished, 0, "a delta after the end");
                            answer.push_str(&delta.text);
                            for entry in &delta.logprobs {
                                assert_eq!(entry.chosen.as_ref().unwrap().token_bytes, b"A");
                                assert_eq!(entry.top[0].token_id, 66);
                            }
                        }
                        Some(Event::Finished(end)) if end.choice == choice => {
                            assert_eq!(end.reason(), v1::FinishReason::Length);
                            finished += 1;
                        }
                        _ => {}
                    }
                }
                assert_eq!((answer.as_str(), finished), ("HelA", 1));
            }
            let Some(Event::Done(done)) = &events.last().unwrap().event else {
                panic!("the last event is {:?}", events.last());
            };
            let usage = done.usage.unwrap();
            assert_eq!((usage.prompt_tokens, usage.completion_tokens), (2, 8));
        },
    );
}

fn with_sampling(temperature: f32, min_p: f32) -> GenerateRequest {
    GenerateRequest {
        options: Some(AnswerOptions {
            sampling: Some(Sampling {
                temperature: Some(temperature),
                min_p: Some(min_p),
                ..Sampling::default()
            }),
            ..AnswerOptions::default()
        }),
        ..text("x")
    }
}

fn ids(ids: Vec<u32>) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids })),
        ..GenerateRequest::default()
    }
}

#[test]
fn bad_requests_name_the_field() {
    let another_model = GenerateRequest {
        model: "../etc/passwd\u{1b}[0m".to_owned(),
        ..text("x")
    };
    let many_logprobs = GenerateRequest {
        options: Some(AnswerOptions {
            top_logprobs: Some(21),
            ..AnswerOptions::default()
        }),
        ..text("x")
    };
    let cases = [
        (GenerateRequest::default(), "invalid_value", "prompt"),
        (text(""), "invalid_value", "prompt"),
        (
            with_sampling(f32::NAN, 0.0),
            "invalid_value",
            "options.sampling.temperature",
        ),
        (
            with_sampling(1.0, f32::INFINITY),
            "invalid_value",
            "options.sampling.min_p",
        ),
        (ids(vec![1, 258]), "invalid_value", "prompt"),
        (ids(vec![1; 1_024]), "context_length_exceeded", "prompt"),
        (another_model, "model_not_found", "model"),
        (many_logprobs, "invalid_value", "options.top_logprobs"),
    ];
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            for (request, reason, field) in cases {
                let status = call(channel.clone(), request).await.unwrap_err();
                let expected = match reason {
                    "model_not_found" => Code::NotFound,
                    _ => Code::InvalidArgument,
                };
                assert_eq!(status.code(), expected, "{status}");
                let details = status.get_error_details();
                let info = details.error_info().unwrap();
                assert_eq!(
                    (info.domain.as_str(), info.reason.as_str()),
                    ("dopd", reason)
                );
                let violations = &details.bad_request().unwrap().field_violations;
                assert_eq!(violations[0].field, field);
                assert!(details.request_info().is_some());
            }
        },
    );
}

#[test]
fn a_failure_on_the_way_is_the_status() {
    let error = Error::new(Reason::WorkerFailed, "the worker is gone")
        .with_retry_after(Duration::from_millis(250));
    let script = vec![Step::Text("a"), Step::Fail(error)];
    serve(
        Fake::new(script),
        GrpcConfig::default(),
        |channel| async move {
            let status = call(channel, text("x")).await.unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::Unavailable, "the worker is gone")
            );
            let retry = status.get_error_details().retry_info().unwrap().retry_delay;
            assert_eq!(retry, Some(Duration::from_millis(250)));
        },
    );
}

#[test]
fn a_timeout_covers_the_whole_stream_and_cancels() {
    let fake = Fake::new(vec![Step::Text("a"), Step::Gate]);
    let cancelled = fake.cancelled.clone();
    serve(fake, GrpcConfig::default(), |channel| async move {
        let mut request = Request::new(text("x"));
        let timeout = MetadataValue::from_static("50m");
        request.metadata_mut().insert("grpc-timeout", timeout);
        let status = call(channel, request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let info = status.get_error_details();
        assert_eq!(info.error_info().unwrap().reason, "deadline_exceeded");
    });
    assert_eq!(cancelled.load(Ordering::Relaxed), 1);
}

#[test]
fn a_malformed_timeout_is_refused() {
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            for bad in ["-1S", "1x", "999999999S"] {
                let mut request = Request::new(text("x"));
                let timeout = MetadataValue::try_from(bad).unwrap();
                request.metadata_mut().insert("grpc-timeout", timeout);
                let status = call(channel.clone(), request).await.unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument, "{bad}");
                assert!(status.message().contains("grpc-timeout"), "{status}");
            }
        },
    );
}

#[test]
fn a_message_over_the_limit_is_resource_exhausted() {
    let config = GrpcConfig {
        message_bytes_max: 100,
        ..GrpcConfig::default()
    };
    serve(Fake::new(vec![]), config, |channel| async move {
        let status = call(channel, text(&"x".repeat(200))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "body_too_large");
    });
}

/// As a body of the other front does.
#[test]
fn a_message_takes_of_the_memory_for_preparation_and_gives_it_back() {
    let fake = Fake::new(vec![Step::Text("a"), Step::Finish(FinishReason::Stop)]);
    let limits = LimitsConfig {
        preparing_bytes_max: 100,
        ..LimitsConfig::default()
    };
    let (gate, config) = (Gate::default(), GrpcConfig::default());
    at(fake, gate, config, limits, |address| async move {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.connect().await.unwrap();
        for _ in 0..3 {
            let status = call(channel.clone(), text(&"x".repeat(200))).await;
            let status = status.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            let details = status.get_error_details();
            assert_eq!(details.error_info().unwrap().reason, "queue_full");
            assert!(details.retry_info().unwrap().retry_delay.is_some());
            call(channel.clone(), text(&"x".repeat(60))).await.unwrap();
        }
    });
}

#[test]
fn health_and_reflection_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            let mut health = HealthClient::new(channel.clone());
            let request = HealthCheckRequest {
                service: "dopd.v1.InferenceService".to_owned(),
            };
            let reply = health.watch(request).await.unwrap();
            let mut stream = reply.into_inner();
            while stream.message().await.unwrap().unwrap().status != 1 {}
            let mut reflection = ServerReflectionClient::new(channel);
            let list = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let request = futures_util::stream::iter([list]);
            let reply = reflection.server_reflection_info(request).await.unwrap();
            let reply = reply.into_inner().message().await.unwrap().unwrap();
            let Some(MessageResponse::ListServicesResponse(list)) = reply.message_response else {
                panic!("{reply:?}");
            };
            let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
            assert!(names.contains(&"dopd.v1.InferenceService"), "{names:?}");
            assert!(
                !names.iter().any(|name| name.contains("worker")),
                "{names:?}"
            );
        },
    );
}
