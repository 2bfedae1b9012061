//! What a bad request gets: status, code, field, text.

use dopd_router::{
    config::records::{HttpConfig, LimitsConfig},
    error::{Error, Reason},
    streams::sink::FinishReason,
};

use crate::{
    client::{Reply, ask, exchange, post},
    fake::{Fake, Step, serve, with_http},
};

fn quiet() -> Fake {
    Fake::new(vec![Step::Text("a"), Step::Finish(FinishReason::Stop)])
}

/// `status code param: message`.
pub(crate) fn line(reply: &Reply) -> String {
    let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    let error = &body["error"];
    let text = |key: &str| error[key].as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} {}: {}\n",
        reply.status,
        text("code"),
        text("param"),
        text("message")
    )
}

#[test]
fn bad_bodies() {
    let long = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(2_000));
    let bodies = [
        "{\"prompt\": \"x\",\n oops}",
        "[]",
        "{\"prompt\":\"\u{feff}",
        r#"{"prompt":"\ud800"}"#,
        r#"{"prompt":"x","prompt":"y"}"#,
        r#"{"prompt":"x","temperature":NaN}"#,
        r#"{"prompt":"x","temperature":1e400}"#,
        r#"{"prompt":"x","temperature":"hot"}"#,
        r#"{"prompt":"x","temperature":-0.5}"#,
        r#"{"prompt":"x","top_p":0}"#,
        r#"{"prompt":"x","max_tokens":0}"#,
        r#"{"prompt":"x","max_tokens":9223372036854775808}"#,
        r#"{"prompt":"x","max_tokens":2.5}"#,
        r#"{"prompt":"x","max_tokens":1024}"#,
        r#"{"prompt":"x","min_tokens":17}"#,
        r#"{"prompt":"x","stop":["a",""]}"#,
        r#"{"prompt":"x","stop_token_ids":[258]}"#,
        r#"{"prompt":"x","stream_options":{"include_usage":true}}"#,
        r#"{"prompt":"x","model":"other"}"#,
        r#"{"prompt":[1,258]}"#,
        r#"{"prompt":[1,-1]}"#,
        r#"{"prompt":["a",[1]]}"#,
        r#"{"prompt":["a",""]}"#,
        r#"{"prompt":[[1],[]]}"#,
        r#"{"prompt":[]}"#,
        r#"{"prompt":""}"#,
        "{}",
        long.as_str(),
    ];
    serve(quiet(), |address| async move {
        let mut lines = String::new();
        for body in bodies {
            lines += &line(&post(address, "/v1/completions", body).await);
        }
        insta::assert_snapshot!(lines, @r##"
        400 invalid_json -: the body is not a valid JSON object: key must be a string at line 2 column 2
        400 invalid_json -: the body is not a valid JSON object: invalid type: sequence, expected an object at line 1 column 0
        400 invalid_json -: the body is not a valid JSON object: EOF while parsing a string at line 1 column 14
        400 invalid_value prompt: prompt: unexpected end of hex escape
        400 invalid_json -: the body is not a valid JSON object: field `prompt` comes twice at line 1 column 22
        400 invalid_json -: the body is not a valid JSON object: expected value at line 1 column 29
        400 invalid_value temperature: temperature: number out of range
        400 invalid_value temperature: temperature: invalid type: string "hot", expected a number
        400 invalid_value temperature: temperature is -0.5, it must be from 0 to 2
        400 invalid_value top_p: top_p is 0, it must be above 0
        400 invalid_value max_tokens: max_tokens is 0, it must be from 1 to 4294967295
        400 invalid_value max_tokens: max_tokens is 9223372036854775807, it must be from 1 to 4294967295
        400 invalid_value max_tokens: max_tokens: 2.5 is not an integer
        400 context_length_exceeded prompt: 1 prompt tokens and max_tokens 1024 do not fit; the model's context is 1024 tokens
        400 invalid_value min_tokens: min_tokens is 17, but the answer has at most 16 tokens
        400 invalid_value stop: a stop string is empty
        400 invalid_value stop_token_ids: token id 258 is not in the vocabulary of 258 tokens
        400 invalid_value stream_options: stream_options needs stream to be true
        404 model_not_found model: model "other" is not served here; "mock" is
        400 invalid_value prompt: token id 258 is not in the vocabulary of 258 tokens
        400 invalid_value prompt: token id -1 is not in the vocabulary
        400 invalid_value prompt: prompt: invalid type: sequence, expected a string
        400 invalid_value prompt: the prompt has no token
        400 invalid_value prompt: the prompt has no token
        400 invalid_value prompt: the prompt has no token
        400 invalid_value prompt: the prompt has no token
        400 invalid_value prompt: prompt is required
        400 context_length_exceeded prompt: the prompt has 2000 tokens and leaves no room for an answer; the model's context is 1024 tokens
        "##);
    });
}

#[test]
fn bad_chats() {
    let tools = vec!["{}"; 129].join(",");
    let many_tools = format!(
        r#"{{"messages":[{{"role":"user","content":"x"}}],"tool_choice":"none","tools":[{tools}]}}"#
    );
    let bodies = [
        r#"{"messages":[]}"#,
        r#"{"messages":5}"#,
        r#"{"messages":[{"role":"user"}]}"#,
        r#"{"messages":[{"role":"user","content":5}]}"#,
        r#"{"messages":[{"role":"king","content":"x"}]}"#,
        r#"{"messages":[{"role":"function","content":"x"}]}"#,
        r#"{"messages":[{"role":"user","content":"x","tool_calls":[{}]}]}"#,
        r#"{"messages":[{"role":"assistant","tool_calls":[{"id":"1"}]}]}"#,
        r#"{"messages":[{"content":"x"}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function"}]}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"functions":[{"name":"f"}],
            "function_call":"auto"}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"tools":["f"],"tool_choice":"none"}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"tools":[],"tool_choice":"required"}"#,
        many_tools.as_str(),
        r#"{"messages":[{"role":"user","content":"x"}],"echo":true}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"best_of":2}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":0}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"prompt_logprobs":21}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"top_logprobs":3}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_object"}}"#,
    ];
    serve(quiet(), |address| async move {
        let mut lines = String::new();
        for body in bodies {
            lines += &line(&post(address, "/v1/chat/completions", body).await);
        }
        insta::assert_snapshot!(lines, @r##"
        400 invalid_value messages: at least one message is required
        400 invalid_value messages: messages: invalid type: integer `5`, expected a list
        400 invalid_value messages[0].content: content is required
        400 invalid_value messages[0].content: messages[0].content: invalid type: integer `5`, expected a string or a list of text parts
        400 invalid_value messages[0].role: the role must be system, developer, user, assistant or tool
        400 unsupported_value messages[0].role: functions are not supported, tools are
        400 invalid_value messages[0].tool_calls: a message of role user has no tool calls
        400 unsupported_value messages[0].tool_calls: the model's chat template knows no tool calls
        400 invalid_value messages[0]: messages[0]: missing field `role`
        400 unsupported_value messages[0].content[0]: only parts of type text are supported
        400 unsupported_value tools: tools are not supported, unless the choice of tool is none
        400 unsupported_value functions: functions are not supported, unless the choice of tool is none
        400 invalid_value tools: tools: invalid type: string "f", expected a map
        400 unsupported_value tool_choice: tool_choice is not supported, only none or auto is
        400 invalid_value tools: tools: 129 elements, at most 128
        400 unsupported_value echo: echo is not supported, only false is
        400 unsupported_value best_of: best_of is not supported, only 1 is
        400 invalid_value max_tokens: max_tokens is 0, it must be from 1 to 4294967295
        400 invalid_value prompt_logprobs: prompt_logprobs is 21, it must be from 0 to 20
        400 invalid_value top_logprobs: top_logprobs needs logprobs to be true
        400 unsupported_value response_format: response_format is not supported, only type text is
        "##);
    });
}

#[test]
fn harmless_fields_pass() {
    let body = r#"{"messages":[{"role":"developer","content":[{"type":"text","text":"be brief"}],
        "name":"x"},{"role":"assistant","content":null},{"role":"user","content":"hi"}],
        "tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none","logit_bias":{},
        "frequency_penalty":0,"user":"u",
        "presence_penalty":0.0,"response_format":{"type":"text"},"stop":null,"n":null,
        "logprobs":false,"top_logprobs":0,"seed":-1,"stream_options":null,"surprise":{"a":[1]},
        "max_completion_tokens":5,"temperature":-0.0,"top_k":-1,"metadata":{"k":"v"}}"#;
    serve(quiet(), |address| async move {
        let reply = post(address, "/v1/chat/completions", body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    });
}

#[test]
fn routes_and_methods() {
    serve(quiet(), |address| async move {
        let mut lines = line(&ask(address, "GET", "/v1/nothing").await);
        let wrong = ask(address, "GET", "/v1/chat/completions").await;
        assert_eq!(wrong.header("allow"), Some("POST, OPTIONS"));
        lines += &line(&wrong);
        lines += &line(&ask(address, "DELETE", "/v1/models").await);
        lines += &line(&ask(address, "GET", "/v1/models/else").await);
        insta::assert_snapshot!(lines, @r##"
        404 not_found -: no route "/v1/nothing"; there are /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize
        405 method_not_allowed -: this route takes POST, OPTIONS
        405 method_not_allowed -: this route takes GET, HEAD, OPTIONS
        404 model_not_found -: only model "mock" is served here
        "##);
    });
}

#[test]
fn too_large_too_slow_and_of_another_type() {
    let config = HttpConfig {
        body_bytes_max: 64,
        read_timeout_ms: 500,
        ..HttpConfig::default()
    };
    with_http(
        quiet(),
        config,
        LimitsConfig::default(),
        |address| async move {
            let long = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(64));
            let announced = post(address, "/v1/completions", &long).await;
            assert_eq!(announced.header("x-should-retry"), Some("false"));
            let mut lines = line(&announced);
            let chunked = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
                long.len()
            );
            lines += &line(&exchange(address, chunked.as_bytes()).await);
            // A client that waits for the answer to its head gets it.
            let waiting = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                       content-type: application/json\r\ncontent-length: 65\r\n\r\n";
            lines += &line(&exchange(address, waiting.as_bytes()).await);
            let halted = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n\
                      content-type: application/json\r\ncontent-length: 20\r\n\r\n{";
            lines += &line(&exchange(address, halted.as_bytes()).await);
            let typed = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n\
                     content-length: 2\r\nconnection: close\r\n\r\n{}";
            lines += &line(&exchange(address, typed.as_bytes()).await);
            insta::assert_snapshot!(lines, @r##"
            413 body_too_large -: the body is larger than 64 bytes
            413 body_too_large -: the body is larger than 64 bytes
            413 body_too_large -: the body is larger than 64 bytes
            408 client_too_slow -: the body did not arrive within 500 ms
            400 unsupported_value content-type: the content-type must be application/json
            "##);
        },
    );
}

#[test]
fn a_refusal_of_dispatch_is_rendered() {
    let mut fake = quiet();
    fake.refusal = Some(Error::new(
        Reason::QueueFull,
        "10000 requests wait, at most 10000",
    ));
    serve(fake, |address| async move {
        let reply = post(address, "/v1/completions", r#"{"prompt":"x"}"#).await;
        assert_eq!(reply.header("retry-after-ms"), Some("1000"));
        assert_eq!(
            line(&reply),
            "503 queue_full -: 10000 requests wait, at most 10000\n"
        );
    });
}
