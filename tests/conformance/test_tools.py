"""Requests as benchmark and evaluation tools send them, read as those tools read the answers.

Bodies and the fields that are read were taken from vLLM's `bench serve`
(`benchmarks/lib/endpoint_request_func.py`, `benchmarks/serve.py`), guidellm 0.8.1 (its OpenAI
request handlers), aiperf 0.13.0 and lm-eval 0.4 (`models/api_models.py`, `openai_completions.py`).
`python -m bench tools` runs the tools themselves where they are installed.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import mock_model
from tests.support.server import Server

TEXT = "Once upon a time"
PROMPT = mock_model.encode(TEXT)
CHAT = [{"role": "user", "content": TEXT}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
USAGE = {"include_usage": True}
EACH = {"include_usage": True, "continuous_usage_stats": True}
NUM_TOKENS = 24

# (tool, path, body); each asks for NUM_TOKENS tokens, streamed.
STREAMS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "vllm.completions",
        "/v1/completions",
        {
            "prompt": TEXT,
            "repetition_penalty": 1.0,
            "max_tokens": NUM_TOKENS,
            "logprobs": None,
            "stream_options": USAGE,
            "ignore_eos": True,
            "temperature": 0.0,
        },
    ),
    (
        "vllm.completions.tokens",
        "/v1/completions",
        {
            "prompt": PROMPT,
            "repetition_penalty": 1.0,
            "max_tokens": NUM_TOKENS,
            "logprobs": 1,
            "stream_options": USAGE,
            "ignore_eos": True,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.05,
            "temperature": 0.0,
        },
    ),
    (
        "vllm.chat",
        "/v1/chat/completions",
        {
            "messages": PARTS,
            "max_completion_tokens": NUM_TOKENS,
            "stream_options": USAGE,
            "ignore_eos": True,
            "temperature": 0.0,
        },
    ),
    (
        "guidellm.completions",
        "/v1/completions",
        {
            "prompt": TEXT,
            "stream_options": EACH,
            "max_tokens": NUM_TOKENS,
            "stop": None,
            "ignore_eos": True,
        },
    ),
    (
        "guidellm.chat",
        "/v1/chat/completions",
        {
            "messages": PARTS,
            "stream_options": EACH,
            "max_completion_tokens": NUM_TOKENS,
            "stop": None,
            "ignore_eos": True,
        },
    ),
    (
        "aiperf.chat",
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "name": "", "content": TEXT}],
            "max_completion_tokens": NUM_TOKENS,
            "stream_options": USAGE,
            "min_tokens": NUM_TOKENS,
        },
    ),
    (
        "aiperf.completions",
        "/v1/completions",
        {
            "prompt": [TEXT],
            "max_tokens": NUM_TOKENS,
            "min_tokens": NUM_TOKENS,
            "stream_options": EACH,
        },
    ),
]


@pytest.mark.parametrize(
    ("path", "body"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS]
)
def test_stream(mock: Server, path: str, body: dict[str, Any]) -> None:
    """Text or a finish in every choice's chunk; the counts come with the usage, at last."""
    *chunks, last = mock.events(path, {"model": mock.model} | body)
    assert last == "[DONE]"
    texts, counts = [], []
    for chunk in chunks:
        assert isinstance(chunk, dict)
        for choice in chunk["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            texts.append(text or "")
        if chunk.get("usage"):
            counts.append(chunk["usage"]["completion_tokens"])
    assert len("".join(texts)) == NUM_TOKENS
    assert counts[-1] == NUM_TOKENS
    assert counts == sorted(counts)


def test_a_read_with_blanks_cut_off_is_still_whole_events(mock: Server) -> None:
    """`bench serve` strips every piece it reads before it looks for blank lines."""
    body = {"model": "mock", "prompt": TEXT, "max_tokens": 8, "stream": True}
    connection = mock.connection()
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    count = 0
    while piece := answer.read1():
        for event in piece.strip().split(b"\n\n"):
            assert event.startswith(b"data: ")
            count += event == b"data: [DONE]" or bool(json.loads(event.removeprefix(b"data: ")))
    connection.close()
    assert count >= 2


def test_bench_serve_finds_the_model_and_its_root(mock: Server) -> None:
    """Without `--model` it takes the first of the list, and `root` for the tokenizer."""
    model = mock.get("/v1/models").json()["data"][0]
    assert (model["id"], model["root"]) == (mock.model, mock.model)


def test_lm_eval_scores_a_batch_of_token_lists(mock: Server) -> None:
    """`local-completions`: context and continuation as ids, nothing generated, logprobs of all."""
    prompts = [PROMPT, PROMPT[:5]]
    body = {
        "model": mock.model,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = mock.call("POST", "/v1/completions", body)
    assert answer.status == 200, answer.body
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    assert len(choices) == 2
    for prompt, choice in zip(prompts, choices, strict=True):
        columns = choice["logprobs"]
        continuation = columns["token_logprobs"][2:-1]
        assert len(continuation) == len(prompt) - 2
        for value, options in zip(continuation, columns["top_logprobs"][2:-1], strict=True):
            assert value <= 0
            assert value <= max(options.values())


def test_lm_eval_generates_until(mock: Server) -> None:
    """Generation tasks: several prompts, stop strings, a seed."""
    body = {
        "model": mock.model,
        "prompt": [TEXT, "other"],
        "max_tokens": 32,
        "temperature": 0.0,
        "stop": ["\n\n", "Question:"],
        "seed": 1234,
    }
    choices = mock.call("POST", "/v1/completions", body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert [len(choice["text"]) for choice in choices] == [32, 32]


def test_lm_eval_chats(mock: Server) -> None:
    """`local-chat-completions`."""
    body = {
        "model": mock.model,
        "messages": [{"role": "user", "content": TEXT, "type": "text"}],
        "max_tokens": 16,
        "temperature": 0,
        "stop": ["\n\n"],
        "seed": 1234,
    }
    answer = mock.call("POST", "/v1/chat/completions", body).json()
    assert len(answer["choices"][0]["message"]["content"]) == 16


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/version"])
def test_probes(mock: Server, path: str) -> None:
    """What tools ask before they begin."""
    assert mock.get(path).status == 200
