"""How the `openai` client as a whole gets along: models, retries, timeouts, raw answers, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.support import mock_model
from tests.support.conformance import CHAT, Clients
from tests.support.server import Server, serve

EXPECTED = mock_model.text(mock_model.answer(mock_model.chat(CHAT), 16))
ASKED: dict[str, Any] = {
    "model": "mock",
    "messages": CHAT,
    "max_tokens": 16,
    "temperature": 0,
}
# The helpers of the client refuse an answer that was cut off at its length.
STOPPED: dict[str, Any] = ASKED | {"stop": EXPECTED[12:]}
# An answer that lasts until somebody ends it.
ENDLESS: dict[str, Any] = ASKED | {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def lonely() -> Iterator[Server]:
    """A router that no worker dials: every request ends as 503 after 50 ms."""
    wait = {"DOPD_LIMITS__NO_WORKER_WAIT_MS": "50"}
    with serve("--mock", command="router", env=wait) as server:
        yield server


def counting(server: Server, **options: Any) -> tuple[openai.OpenAI, list[httpx2.Request]]:
    """A client, and the requests that it sends."""
    sent: list[httpx2.Request] = []
    http = openai.DefaultHttpx2Client(event_hooks={"request": [sent.append]})
    url = f"{server.url}/v1"
    return openai.OpenAI(base_url=url, api_key="none", http_client=http, **options), sent


def test_models_are_listed(clients: Clients) -> None:
    (model,) = clients.sync.models.list()
    assert (model.id, model.object, model.owned_by) == ("mock", "model", "dopd")
    assert model.created > 1_700_000_000


def test_models_are_listed_async(clients: Clients) -> None:
    async def ids() -> list[str]:
        return [model.id async for model in clients.later.models.list()]

    assert clients.runner.run(ids()) == ["mock"]


def test_model_is_found(clients: Clients) -> None:
    assert clients.sync.models.retrieve("mock").id == "mock"


@pytest.mark.parametrize("name", ["nope", "org/model", "na\u00efve", "a b", "mock%2F"])
def test_model_is_not_found(clients: Clients, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        clients.sync.models.retrieve(name)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("query", [{"a": "b"}, {"after": "x", "limit": 3}])
def test_queries_are_ignored(clients: Clients, query: dict[str, Any]) -> None:
    assert next(iter(clients.sync.models.list(extra_query=query))).id == "mock"


def test_raw_response(clients: Clients) -> None:
    raw = clients.sync.chat.completions.with_raw_response.create(**ASKED)
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id == raw.headers["x-request-id"]
    found = raw.parse()
    assert found.id == f"chatcmpl-{raw.request_id}"
    assert found.choices[0].message.content == EXPECTED
    assert found._request_id == raw.request_id


def test_raw_stream(clients: Clients) -> None:
    raw = clients.sync.chat.completions.with_raw_response.create(**ASKED, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["cache-control"] == "no-cache"
    assert raw.headers["x-accel-buffering"] == "no"
    assert raw.headers["x-request-id"]
    text = "".join(c.choices[0].delta.content or "" for c in raw.parse() if c.choices)
    assert text == EXPECTED


def test_streaming_response_lines(clients: Clients) -> None:
    asked = ASKED | {"stream": True}
    with clients.sync.chat.completions.with_streaming_response.create(**asked) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_stream_helper(clients: Clients) -> None:
    with clients.sync.chat.completions.stream(**STOPPED) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == EXPECTED[:12]


def test_stream_helper_async(clients: Clients) -> None:
    async def run() -> str | None:
        async with clients.later.chat.completions.stream(**STOPPED) as stream:
            async for _ in stream:
                pass
            return (await stream.get_final_completion()).choices[0].message.content

    assert clients.runner.run(run()) == EXPECTED[:12]


def test_parse_without_a_format(clients: Clients) -> None:
    found = clients.sync.chat.completions.parse(**STOPPED)
    assert found.choices[0].message.content == EXPECTED[:12]
    assert found.choices[0].message.parsed is None


def test_include_obfuscation_is_ignored(clients: Clients) -> None:
    options = {"include_usage": True, "include_obfuscation": False}
    found = clients.ask("chat", "stream", **ASKED, stream_options=options)
    assert found.texts == [EXPECTED]
    assert found.usage.completion_tokens == 16


def test_foreign_headers_are_ignored(clients: Clients) -> None:
    client = clients.sync.with_options(
        default_headers={"OpenAI-Organization": "o", "OpenAI-Project": "p", "OpenAI-Beta": "x=v1"}
    )
    assert client.chat.completions.create(**ASKED).choices[0].message.content == EXPECTED


def test_a_stream_that_is_closed_frees_its_request(clients: Clients) -> None:
    stream = clients.sync.chat.completions.create(**ENDLESS, stream=True)
    for count, _ in enumerate(stream):
        if count == 3:
            break
    stream.close()
    clients.server.wait_idle()


def test_a_stream_that_is_left_frees_its_request(clients: Clients) -> None:
    with clients.sync.chat.completions.create(**ENDLESS, stream=True) as stream:
        next(iter(stream))
    clients.server.wait_idle()


def test_a_stream_that_is_closed_frees_its_request_async(clients: Clients) -> None:
    async def run() -> None:
        stream = await clients.later.chat.completions.create(**ENDLESS, stream=True)
        async for _ in stream:
            break
        await stream.close()

    clients.runner.run(run())
    clients.server.wait_idle()


def test_a_task_that_is_cancelled_frees_its_request(clients: Clients) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(clients.later.chat.completions.create(**ENDLESS))
        await asyncio.wait({task}, timeout=0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clients.runner.run(run())
    clients.server.wait_idle()


def test_a_timeout_frees_its_request(clients: Clients) -> None:
    with pytest.raises(openai.APITimeoutError):
        clients.sync.with_options(timeout=0.2).chat.completions.create(**ENDLESS)
    clients.server.wait_idle()


def test_many_at_once(clients: Clients) -> None:
    async def run() -> list[str | None]:
        asked = [clients.later.chat.completions.create(**ASKED) for _ in range(48)]
        return [found.choices[0].message.content for found in await asyncio.gather(*asked)]

    assert clients.runner.run(run()) == [EXPECTED] * 48


@pytest.mark.parametrize(
    "fields", [{"temperature": 9}, {"model": "nope"}], ids=["bad_request", "not_found"]
)
def test_what_would_fail_again_is_not_retried(mock: Server, fields: dict[str, Any]) -> None:
    client, sent = counting(mock, max_retries=3)
    with client, pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**(ASKED | fields))
    assert len(sent) == 1


def test_what_may_work_later_is_retried(lonely: Server) -> None:
    client, sent = counting(lonely, max_retries=1)
    with client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ASKED)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (503, "no_worker", "overloaded_error")
    assert len(sent) == 2
    assert sent[1].headers["x-stainless-retry-count"] == "1"
    assert int(error.response.headers["retry-after-ms"]) >= 1
    assert int(error.response.headers["retry-after"]) >= 1
    assert "x-should-retry" not in error.response.headers


def test_a_stream_fails_before_its_first_event(lonely: Server) -> None:
    client, sent = counting(lonely, max_retries=0)
    with client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ASKED, stream=True)
    assert caught.value.code == "no_worker"
    assert len(sent) == 1


def test_a_model_without_workers_stays_listed(lonely: Server) -> None:
    client, _ = counting(lonely)
    with client:
        (model,) = client.models.list()
    assert model.model_extra is not None
    assert model.model_extra["status"] == "no_worker"


Call = Callable[[openai.OpenAI], Any]
# Routes of the client that dopd does not have.
ABSENT: list[tuple[str, Call]] = [
    ("embeddings", lambda c: c.embeddings.create(model="mock", input="a")),
    ("responses", lambda c: c.responses.create(model="mock", input="a")),
    ("moderations", lambda c: c.moderations.create(input="a")),
    ("files", lambda c: c.files.list()),
    ("batches", lambda c: c.batches.list()),
    ("images", lambda c: c.images.generate(prompt="a", model="mock")),
    ("stored_chats", lambda c: c.chat.completions.list()),
    ("fine_tuning", lambda c: c.fine_tuning.jobs.list()),
]


@pytest.mark.parametrize("call", [row[1] for row in ABSENT], ids=[row[0] for row in ABSENT])
def test_absent_routes(clients: Clients, call: Call) -> None:
    """Refused as the client's own error, with words that help."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(clients.sync)
    assert caught.value.status_code in {404, 405}
    assert caught.value.code in {"not_found", "method_not_allowed"}
    assert caught.value.type == "invalid_request_error"


def test_deleting_a_model_is_refused(clients: Clients) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        clients.sync.models.delete("mock")
    assert (caught.value.status_code, caught.value.code) == (405, "method_not_allowed")


def test_the_connection_is_kept_after_errors(mock: Server) -> None:
    client, sent = counting(mock, max_retries=0)
    local = set()
    with client:
        for temperature in (9, 0, 9, 0):
            raw = client.chat.completions.with_raw_response
            try:
                answer = raw.create(**(ASKED | {"temperature": temperature})).http_response
            except openai.BadRequestError as error:
                answer = error.response
            local.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(sent) == 4
    assert len(local) == 1
