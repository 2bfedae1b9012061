//! The methods beside Generate, and calls that no method answers.

use std::time::Duration;

use dopd_router::{
    config::records::GrpcConfig,
    streams::sink::FinishReason,
    wire::v1::{
        ChatMessage, ChatMessages, ChatRequest, ChatResponse, DetokenizeRequest, GenerateRequest,
        GenerateResponse, GetModelRequest, ListModelsRequest, TokenizeRequest,
        chat_response::Event, inference_service_client::InferenceServiceClient,
        tokenize_request::Input,
    },
};
use tonic::{
    Code, Request, Status, codegen::http::uri::PathAndQuery, metadata::MetadataValue,
    transport::Channel,
};
use tonic_types::StatusExt;

use crate::{
    fake::{Fake, Step},
    grpc::serve,
};

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// Reason and first blamed field.
pub(crate) fn reason(status: &Status) -> (String, String) {
    let details = status.get_error_details();
    let info = details.error_info().map(|info| info.reason.clone());
    let fields = details
        .bad_request()
        .map(|bad| bad.field_violations.clone());
    let field = fields.and_then(|fields| Some(fields.first()?.field.clone()));
    (info.unwrap_or_default(), field.unwrap_or_default())
}

#[test]
fn a_chat_is_answered_in_order_without_a_gap() {
    let script = vec![
        Step::Text("Hel"),
        Step::Text("lo"),
        Step::Finish(FinishReason::Stop),
    ];
    let fake = Fake::new(script);
    let seen = fake.seen.clone();
    serve(fake, GrpcConfig::default(), |channel| async move {
        let request = ChatRequest {
            messages: vec![message("developer", "be brief"), message("user", "hi")],
            ..ChatRequest::default()
        };
        let stream = InferenceServiceClient::new(channel)
            .chat(request)
            .await
            .unwrap();
        let mut stream = stream.into_inner();
        let mut events: Vec<ChatResponse> = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            events.push(event);
        }
        let numbers: Vec<u64> = events.iter().map(|event| event.sequence_number).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
        let shape: Vec<String> = (events.into_iter())
            .map(|event| match event.event.unwrap() {
                Event::Started(started) => format!("started {} ", started.model),
                Event::Delta(delta) => delta.text,
                Event::Finished(finished) => format!(" {:?}", finished.reason()),
                Event::Done(done) => format!(" {}", done.usage.unwrap().completion_tokens),
            })
            .collect();
        assert_eq!(shape.concat(), "started mock Hello Stop 5");
    });
    // Through the model's template, with the role that templates know.
    let prompt: Vec<u8> = seen.lock()[0]
        .prompt
        .iter()
        .filter_map(|id| u8::try_from(*id).ok())
        .collect();
    let prompt = String::from_utf8(prompt).unwrap();
    assert!(prompt.contains("system\nbe brief"), "{prompt}");
}

#[test]
fn a_bad_chat_names_the_field() {
    let cases = [
        (vec![], "invalid_value", "messages"),
        (
            vec![message("user", "a"), message("king", "b")],
            "invalid_value",
            "messages[1].role",
        ),
        (
            vec![message("function", "a")],
            "unsupported_value",
            "messages[0].role",
        ),
    ];
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            for (messages, code, field) in cases {
                let request = ChatRequest {
                    messages: messages.clone(),
                    ..ChatRequest::default()
                };
                let mut client = InferenceServiceClient::new(channel.clone());
                let status = client.chat(request).await.unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument);
                assert_eq!(reason(&status), (code.to_owned(), field.to_owned()));
                let input = Some(Input::Chat(ChatMessages { messages }));
                let request = TokenizeRequest {
                    input,
                    ..TokenizeRequest::default()
                };
                let status = client.tokenize(request).await.unwrap_err();
                assert_eq!(reason(&status), (code.to_owned(), format!("chat.{field}")));
            }
        },
    );
}

#[test]
fn text_goes_to_ids_and_back() {
    let text = "na\u{ef}ve \u{1F600}";
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            let mut client = InferenceServiceClient::new(channel);
            let request = TokenizeRequest {
                input: Some(Input::Text(text.to_owned())),
                ..TokenizeRequest::default()
            };
            let reply = client.tokenize(request).await.unwrap().into_inner();
            assert_eq!(reply.max_model_len, 1_024);
            assert_eq!(
                reply.token_ids,
                text.bytes().map(u32::from).collect::<Vec<_>>()
            );
            let request = DetokenizeRequest {
                token_ids: reply.token_ids,
                ..DetokenizeRequest::default()
            };
            let reply = client.detokenize(request).await.unwrap().into_inner();
            assert_eq!(reply.text, text);
            let nothing = client
                .tokenize(TokenizeRequest::default())
                .await
                .unwrap_err();
            assert_eq!(
                reason(&nothing),
                ("invalid_value".to_owned(), "input".to_owned())
            );
            for (token_ids, code) in [
                (vec![258], "invalid_value"),
                (vec![1; 1_025], "invalid_value"),
            ] {
                let request = DetokenizeRequest {
                    token_ids,
                    ..DetokenizeRequest::default()
                };
                let status = client.detokenize(request).await.unwrap_err();
                assert_eq!(reason(&status), (code.to_owned(), "token_ids".to_owned()));
            }
        },
    );
}

#[test]
fn the_model_is_listed_and_found_by_its_name() {
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            let mut client = InferenceServiceClient::new(channel);
            let listed = client.list_models(ListModelsRequest {}).await.unwrap();
            let listed = listed.into_inner().models;
            let request = GetModelRequest {
                model: "mock".to_owned(),
            };
            let found = client
                .get_model(request)
                .await
                .unwrap()
                .into_inner()
                .model
                .unwrap();
            assert_eq!(listed, std::slice::from_ref(&found));
            assert_eq!(
                (found.name.as_str(), found.max_model_len, found.ready),
                ("mock", 1_024, true)
            );
            let request = GetModelRequest {
                model: "other".to_owned(),
            };
            let status = client.get_model(request).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound);
            assert_eq!(
                reason(&status),
                ("model_not_found".to_owned(), "model".to_owned())
            );
        },
    );
}

/// Calls `path` with `requests` messages of no content, and leaves the request open.
async fn half_open(channel: Channel, path: &'static str, timeout: &str) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = Request::new(futures_util::stream::pending::<GenerateRequest>());
    let timeout = MetadataValue::try_from(timeout).unwrap();
    request.metadata_mut().insert("grpc-timeout", timeout);
    let codec: tonic_prost::ProstCodec<GenerateRequest, GenerateResponse> =
        tonic_prost::ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    let reply = client.client_streaming(request, path, codec).await;
    reply.unwrap_err()
}

#[test]
fn a_call_whose_message_never_comes_ends() {
    let config = GrpcConfig {
        read_timeout_ms: 100,
        ..GrpcConfig::default()
    };
    let method = "/dopd.v1.InferenceService/Generate";
    serve(Fake::new(vec![]), config, move |channel| async move {
        let status = half_open(channel, method, "1H").await;
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(reason(&status).0, "client_too_slow");
    });
}

#[test]
fn a_deadline_ends_a_watch_of_health() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            let mut request = Request::new(HealthCheckRequest::default());
            request.set_timeout(Duration::from_secs(3_600));
            let timeout = MetadataValue::from_static("50m");
            request.metadata_mut().insert("grpc-timeout", timeout);
            let mut stream = HealthClient::new(channel)
                .watch(request)
                .await
                .unwrap()
                .into_inner();
            let end = loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
        },
    );
}

#[test]
fn what_is_no_call_is_told_so() {
    serve(
        Fake::new(vec![]),
        GrpcConfig::default(),
        |channel| async move {
            for path in ["/dopd.v1.InferenceService/Guess", "/no.such/Service"] {
                let status = half_open(channel.clone(), path, "10S").await;
                assert_eq!(status.code(), Code::Unimplemented, "{path}");
                assert_eq!(reason(&status).0, "not_found");
            }
        },
    );
}
