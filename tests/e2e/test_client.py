"""Both clients against a real server: answers, endings, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

import dopd
from tests.support import both_clients, mock_model
from tests.support.processes import wait_for
from tests.support.server import Server

BOTH = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
ENDLESS: dopd.AnswerOptions = {"max_tokens": 100_000, "ignore_eos": True}
GREEDY: dopd.AnswerOptions = {"temperature": 0, "ignore_eos": True, "max_tokens": 40}
IDS = [7, 77, 177]
WAIT_S = 30.0


def call(kind: str, server: Server, method: str, *args: Any, **kwargs: Any) -> Any:
    return both_clients.call(kind, server.grpc, method, *args, **kwargs)


def wait_running(server: Server) -> None:
    wait_for(lambda: server.status()["sequences_running"] == 1, "the request runs", WAIT_S)


@BOTH
def test_generate_gives_the_models_answer(kind: str, mock: Server) -> None:
    answer = call(kind, mock, "generate", IDS, **GREEDY)
    expected = mock_model.answer(IDS, 40, ignore_eos=True)
    [choice] = answer.choices
    assert choice.token_ids == tuple(expected)
    assert choice.text == answer.text == mock_model.text(expected)
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
    assert answer.usage == dopd.Usage(3, 40, 0)
    assert (answer.model, bool(answer.request_id)) == (mock.model, True)


@BOTH
def test_text_prompts_choices_and_log_probabilities(kind: str, mock: Server) -> None:
    answer = call(kind, mock, "generate", "hello", max_tokens=6, n=3, seed=5, top_logprobs=2)
    for index, choice in enumerate(answer.choices):
        tokens = mock_model.encode("hello")
        expected = mock_model.answer(tokens, 6, temperature=1, seed=5, choice=index)
        assert (choice.index, choice.token_ids) == (index, tuple(expected))
        assert [entry.chosen.token_id for entry in choice.logprobs] == expected
        assert all(entry.top[0].logprob >= entry.top[-1].logprob for entry in choice.logprobs)


@BOTH
def test_chat_reads_messages_as_the_template_writes_them(kind: str, mock: Server) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answer = call(kind, mock, "chat", messages, temperature=0, max_tokens=9, ignore_eos=True)
    expected = mock_model.answer(mock_model.chat(messages), 9, ignore_eos=True)
    assert answer.choices[0].token_ids == tuple(expected)
    tokens = call(kind, mock, "tokenize", messages)
    assert tokens.token_ids == tuple(mock_model.chat(messages))
    alone = call(kind, mock, "chat", "u", temperature=0, max_tokens=9, ignore_eos=True)
    expected = mock_model.answer(mock_model.chat(messages[1:]), 9, ignore_eos=True)
    assert alone.choices[0].token_ids == tuple(expected)


@BOTH
def test_tokens_models_and_health(kind: str, mock: Server) -> None:
    tokens = call(kind, mock, "tokenize", "héllo")
    assert tokens.token_ids == tuple("héllo".encode())
    assert call(kind, mock, "detokenize", tokens.token_ids) == "héllo"
    [model] = call(kind, mock, "models")
    assert (model.name, model.ready, model.max_model_len) == (
        mock.model,
        True,
        tokens.max_model_len,
    )
    assert call(kind, mock, "model", mock.model) == model
    # The server looks at itself now and then.
    wait_for(lambda: call(kind, mock, "health") == "serving", "the server says so", WAIT_S)
    with pytest.raises(dopd.NotFoundError) as caught:
        call(kind, mock, "model", "nope")
    assert caught.value.reason == "model_not_found"


@BOTH
def test_events_and_answer_say_the_same(kind: str, mock: Server) -> None:
    events = both_clients.events(kind, mock.grpc, IDS, **GREEDY)
    assert isinstance(events[0], dopd.Started)
    assert isinstance(events[-1], dopd.Done)
    deltas = [event for event in events if isinstance(event, dopd.Delta)]
    assert [token for delta in deltas for token in delta.token_ids] == mock_model.answer(
        IDS, 40, ignore_eos=True
    )
    assert events[-1].usage == dopd.Usage(3, 40, 0)


def test_the_text_of_a_stream_is_the_answers_text(mock: Server) -> None:
    with dopd.Client(mock.grpc) as client:
        with client.stream_generate(IDS, **GREEDY) as stream:
            pieces = list(stream.text_stream())
            assert len(pieces) > 1
            assert stream.answer().text == "".join(pieces)


@BOTH
@pytest.mark.parametrize(
    ("options", "exception", "field"),
    [
        ({"temperature": 9}, dopd.InvalidRequestError, "temperature"),
        ({"n": 0}, dopd.InvalidRequestError, "n"),
        ({"stop": [""]}, dopd.InvalidRequestError, "stop"),
        ({"max_tokens": 200_000}, dopd.ContextLengthError, None),
        ({"model": "nope"}, dopd.NotFoundError, "model"),
        ({"timeout_s": 0.2, **ENDLESS}, dopd.DeadlineExceededError, None),
    ],
)
def test_failures_have_their_exception(
    kind: str, mock: Server, options: dict[str, Any], exception: type, field: str | None
) -> None:
    with pytest.raises(dopd.RequestError) as caught:
        call(kind, mock, "generate", "x", **options)
    assert type(caught.value) is exception
    if field:
        assert caught.value.field == field
        assert caught.value.request_id
    mock.wait_idle()


@BOTH
def test_the_http_port_is_told_from_the_grpc_port(kind: str, mock: Server) -> None:
    with pytest.raises(dopd.RequestError, match="gRPC listener"):
        both_clients.call(kind, mock.http, "generate", "x")


@BOTH
def test_leaving_a_stream_gives_its_pages_back(kind: str, mock: Server) -> None:
    both_clients.stream(kind, mock.grpc, lambda _: wait_running(mock), "x", **ENDLESS)
    mock.wait_idle()


@BOTH
def test_an_error_in_the_block_gives_its_pages_back(kind: str, mock: Server) -> None:
    def stumble(_: object) -> None:
        wait_running(mock)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        both_clients.stream(kind, mock.grpc, stumble, "x", **ENDLESS)
    mock.wait_idle()


def test_an_abandoned_stream_gives_its_pages_back(mock: Server) -> None:
    with dopd.Client(mock.grpc) as client:
        for _ in client.stream_generate("x", **ENDLESS):
            wait_running(mock)
            break
        gc.collect()
        mock.wait_idle()


def test_a_cancelled_task_gives_its_pages_back(mock: Server) -> None:
    async def run() -> None:
        async with dopd.AsyncClient(mock.grpc) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.generate("x", **ENDLESS)
            await asyncio.to_thread(mock.wait_idle)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["answer", "events"])
def test_ctrl_c_gives_its_pages_back(mock: Server, how: str) -> None:
    code = (
        "import dopd, time\n"
        "client = dopd.Client()\n"
        "try:\n"
        "    if {how!r} == 'answer':\n"
        "        client.generate('x', max_tokens=100_000, ignore_eos=True)\n"
        "    with client.stream_generate('x', max_tokens=100_000, ignore_eos=True) as stream:\n"
        "        for _ in stream: pass\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code.replace("{how!r}", repr(how))],
        env=os.environ | {"DOPD_ENDPOINT": mock.grpc},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_running(mock)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        # The process lives on: the stream was cancelled, not the connection lost.
        mock.wait_idle()
        process.communicate("\n", timeout=WAIT_S)
    assert process.returncode == 0


def test_one_client_serves_many_threads(mock: Server) -> None:
    answers: list[str] = []
    expected = mock_model.text(mock_model.answer(IDS, 40, ignore_eos=True))
    with dopd.Client(mock.grpc, timeout_s=WAIT_S) as client:

        def ask() -> None:
            answers.extend(client.generate(IDS, **GREEDY).text for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [expected] * 40


def test_more_calls_than_a_connection_carries(mock: Server) -> None:
    async def run() -> list[dopd.Answer]:
        async with dopd.AsyncClient(mock.grpc, timeout_s=WAIT_S) as client:
            return await asyncio.gather(
                *(client.generate([7, number], max_tokens=3) for number in range(250))
            )

    answers = asyncio.run(run())
    assert {len(answer.choices[0].token_ids) for answer in answers} == {3}
    assert len({answer.request_id for answer in answers}) == 250
    mock.wait_idle()
