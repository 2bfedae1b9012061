"""Both clients against a server that fails in scripted ways."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

import dopd
from dopd._gen.dopd.v1 import inference_pb2 as pb
from tests.support import both_clients
from tests.support import fake_inference as fake
from tests.support.processes import wait_for

BOTH = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
WAIT_S = 20.0


def generate(kind: str, server: fake.FakeServer, **options: Any) -> dopd.Answer:
    answer: dopd.Answer = both_clients.call(kind, server.endpoint, "generate", "x", **options)
    return answer


def refused(kind: str, server: fake.FakeServer, **options: Any) -> dopd.RequestError:
    with pytest.raises(dopd.RequestError) as caught:
        generate(kind, server, **options)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@BOTH
def test_an_answer_comes_whole_or_as_events(kind: str) -> None:
    with fake.serve(fake.says(*fake.whole())) as server:
        answer = generate(kind, server)
        events = both_clients.events(kind, server.endpoint, "x")
    assert (answer.text, answer.request_id, answer.model) == ("Hello", "r1", "m")
    assert [type(event).__name__ for event in events] == [
        "Started",
        "Delta",
        "Delta",
        "Finished",
        "Done",
    ]


@BOTH
def test_a_server_that_dies_before_the_first_token_is_asked_again(kind: str) -> None:
    started = fake.whole(request_id="lost")[:1]
    dies = fake.fails(UNAVAILABLE, after=started)
    with fake.serve(dies, fake.fails(UNAVAILABLE), fake.says(*fake.whole())) as server:
        events = both_clients.events(kind, server.endpoint, "x")
    assert len(server.calls) == 3
    assert [event.request_id for event in events if isinstance(event, dopd.Started)] == ["r1"]


@BOTH
def test_three_attempts_are_all(kind: str) -> None:
    with fake.serve(fake.fails(UNAVAILABLE, "gone")) as server:
        error = refused(kind, server)
    assert len(server.calls) == 3
    assert isinstance(error, dopd.UnavailableError)
    assert error.attempts == 3
    assert "3 attempts" in str(error)


@BOTH
def test_after_the_first_token_nothing_is_sent_again(kind: str) -> None:
    script = fake.fails(UNAVAILABLE, after=fake.whole()[:2])
    with fake.serve(script, fake.says(*fake.whole())) as server:
        error = refused(kind, server)
    assert len(server.calls) == 1
    assert error.request_id == "r1"


@BOTH
def test_a_full_quota_is_waited_for_as_the_server_says(kind: str) -> None:
    details = (fake.info("rate_limited"), fake.retry_in(0.05))
    script = fake.fails(EXHAUSTED, details=details)
    with fake.serve(script, fake.says(*fake.whole())) as server:
        assert generate(kind, server).text == "Hello"
    assert len(server.calls) == 2


@BOTH
def test_a_wait_that_the_deadline_does_not_hold_is_not_begun(kind: str) -> None:
    details = (fake.info("queue_full"), fake.retry_in(25))
    with fake.serve(fake.fails(UNAVAILABLE, details=details)) as server:
        error = refused(kind, server, timeout_s=20)
    assert len(server.calls) == 1
    assert isinstance(error, dopd.OverloadedError)
    assert (error.retry_after_s, error.reason) == (25, "queue_full")


@BOTH
def test_the_deadline_shrinks_from_attempt_to_attempt(kind: str) -> None:
    script = fake.fails(UNAVAILABLE, details=(fake.info("no_worker"), fake.retry_in(1)))
    with fake.serve(script, fake.says(*fake.whole())) as server:
        generate(kind, server, timeout_s=20)
    first, second = (call.remaining_s for call in server.calls)
    # gRPC rounds the time that it tells the server.
    assert second < first - 0.5


@BOTH
@pytest.mark.parametrize("code", ["INTERNAL", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "ABORTED"])
def test_other_failures_are_final(kind: str, code: str) -> None:
    with fake.serve(fake.fails(grpc.StatusCode[code]), fake.says(*fake.whole())) as server:
        assert refused(kind, server).status == code
    assert len(server.calls) == 1


@BOTH
@pytest.mark.parametrize("raw", [b"", b"\xff\xff", b"\x1a\x7fx"])
def test_details_that_cannot_be_read_leave_the_status(kind: str, raw: bytes) -> None:
    script = fake.fails(grpc.StatusCode.NOT_FOUND, "no model", raw=raw)
    with fake.serve(script) as server:
        error = refused(kind, server)
    assert isinstance(error, dopd.NotFoundError)
    assert "no model" in str(error)


@BOTH
def test_a_gap_in_the_numbers_is_an_error_and_ends_the_call(kind: str) -> None:
    messages = fake.whole()
    del messages[2]
    with fake.serve(fake.waits(*messages)) as server:
        error = refused(kind, server)
        assert server.calls[0].is_cancelled.wait(WAIT_S)
    assert isinstance(error, dopd.BrokenStreamError)
    assert (error.request_id, len(server.calls)) == ("r1", 1)


@BOTH
def test_a_stream_that_ends_early_is_no_answer(kind: str) -> None:
    with fake.serve(fake.says(*fake.whole()[:-1])) as server:
        assert isinstance(refused(kind, server), dopd.BrokenStreamError)


@BOTH
def test_a_status_lost_after_the_last_event_loses_nothing(kind: str) -> None:
    with fake.serve(fake.fails(UNAVAILABLE, after=fake.whole())) as server:
        assert generate(kind, server).text == "Hello"
    assert len(server.calls) == 1


def test_who_leaves_at_the_last_event_has_the_whole_answer() -> None:
    with fake.serve(fake.waits(*fake.whole())) as server, dopd.Client(server.endpoint) as client:
        with client.stream_generate("x") as stream:
            for event in stream:
                if isinstance(event, dopd.Done):
                    break
        assert stream.answer().text == "Hello"


@BOTH
def test_a_slow_server_meets_the_deadline(kind: str) -> None:
    with fake.serve(fake.waits(*fake.whole()[:2])) as server:
        error = refused(kind, server, timeout_s=0.3)
    assert isinstance(error, dopd.DeadlineExceededError)
    assert "0.3" in str(error)


@BOTH
def test_leaving_the_block_cancels_on_the_server(kind: str) -> None:
    with fake.serve(fake.waits(*fake.whole()[:2])) as server:
        both_clients.stream(kind, server.endpoint, lambda _: None, "x")
        assert server.calls[0].is_cancelled.wait(WAIT_S)


@BOTH
def test_an_exception_in_the_block_cancels_on_the_server(kind: str) -> None:
    def stumble(_: object) -> None:
        raise KeyboardInterrupt

    with fake.serve(fake.waits(*fake.whole()[:2])) as server:
        with pytest.raises(KeyboardInterrupt):
            both_clients.stream(kind, server.endpoint, stumble, "x")
        assert server.calls[0].is_cancelled.wait(WAIT_S)


def test_an_abandoned_stream_is_cancelled_by_the_collector() -> None:
    with fake.serve(fake.waits(*fake.whole()[:2])) as server, dopd.Client(server.endpoint) as c:
        stream = c.stream_generate("x")
        next(stream)
        del stream
        gc.collect()
        assert server.calls[0].is_cancelled.wait(WAIT_S)


def test_an_abandoned_async_stream_is_cancelled_by_the_collector() -> None:
    async def run(server: fake.FakeServer) -> None:
        async with dopd.AsyncClient(server.endpoint) as client:
            async for _ in client.stream_generate("x"):
                break
            gc.collect()
            await asyncio.to_thread(server.calls[0].is_cancelled.wait, WAIT_S)
            assert server.calls[0].is_cancelled.is_set()

    with fake.serve(fake.waits(*fake.whole()[:2])) as server:
        asyncio.run(run(server))


def test_another_thread_may_close_a_stream() -> None:
    with fake.serve(fake.waits(*fake.whole()[:2])) as server, dopd.Client(server.endpoint) as c:
        with c.stream_generate("x") as stream:
            timer = threading.Timer(0.1, stream.close)
            timer.start()
            with pytest.raises(dopd.RequestCancelledError) as caught:
                stream.answer()
            timer.join()
            assert caught.value.request_id == "r1"
            with pytest.raises(dopd.RequestCancelledError):
                next(stream)


def test_another_task_may_close_an_async_stream() -> None:
    async def run(server: fake.FakeServer) -> None:
        async with dopd.AsyncClient(server.endpoint) as client:
            async with client.stream_generate("x") as stream:
                reader = asyncio.create_task(stream.answer())
                await asyncio.to_thread(wait_for, lambda: stream.request_id, "an event", WAIT_S)
                await stream.close()
                with pytest.raises(dopd.RequestCancelledError):
                    await reader

    with fake.serve(fake.waits(*fake.whole()[:2])) as server:
        asyncio.run(run(server))


def test_cancelling_the_task_cancels_on_the_server() -> None:
    async def run(server: fake.FakeServer) -> None:
        async with dopd.AsyncClient(server.endpoint) as client:
            task = asyncio.create_task(client.generate("x"))
            await asyncio.to_thread(wait_for, lambda: bool(server.calls), "the call", WAIT_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.calls[0].is_cancelled.wait, WAIT_S)
            assert server.calls[0].is_cancelled.is_set()

    with fake.serve(fake.waits()) as server:
        asyncio.run(run(server))


def test_closing_the_client_ends_its_streams() -> None:
    with fake.serve(fake.waits(*fake.whole()[:2])) as server:
        client = dopd.Client(server.endpoint)
        stream = client.stream_generate("x")
        next(stream)
        client.close()
        with pytest.raises(dopd.RequestCancelledError):
            stream.answer()
        with pytest.raises(RuntimeError, match="client is closed"):
            client.generate("x")


def test_an_async_client_belongs_to_its_loop() -> None:
    with fake.serve(fake.says(*fake.whole())) as server:
        client = dopd.AsyncClient(server.endpoint)
        asyncio.run(client.generate("x"))
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(client.generate("x"))


def test_every_call_is_given_back_to_its_connection() -> None:
    cut = fake.whole()
    del cut[2]
    scripts = [fake.says(*fake.whole()), fake.fails(grpc.StatusCode.INTERNAL), fake.says(*cut)]
    with fake.serve(*scripts, fake.waits(*fake.whole()[:2])) as server:
        with dopd.Client(server.endpoint) as client:
            client.generate("x")
            for kind in (dopd.InternalError, dopd.BrokenStreamError):
                with pytest.raises(kind):
                    client.generate("x")
            with client.stream_generate("x") as stream:
                next(stream)
            next(client.stream_generate("x"))
            [lane] = client._link._pool._lanes
            wait_for(lambda: lane.load == 0, "no call runs", WAIT_S)


def test_every_async_call_is_given_back_to_its_connection() -> None:
    async def run(server: fake.FakeServer) -> None:
        async with dopd.AsyncClient(server.endpoint) as client:
            await client.generate("x")
            for kind in (dopd.InternalError, dopd.BrokenStreamError):
                with pytest.raises(kind):
                    await client.generate("x")
            async with client.stream_generate("x") as stream:
                await anext(stream)
            async for _ in client.stream_generate("x"):
                break
            [lane] = client._link._pool._lanes
            await asyncio.to_thread(wait_for, lambda: lane.load == 0, "no call runs", WAIT_S)

    cut = fake.whole()
    del cut[2]
    scripts = [fake.says(*fake.whole()), fake.fails(grpc.StatusCode.INTERNAL), fake.says(*cut)]
    with fake.serve(*scripts, fake.waits(*fake.whole()[:2])) as server:
        asyncio.run(run(server))


@BOTH
def test_nothing_is_sent_before_it_is_asked_for(kind: str) -> None:
    with fake.serve(fake.says(*fake.whole())) as server:
        client = getattr(dopd, kind)(server.endpoint)
        client.stream_generate("x")
    assert server.calls == []


@BOTH
def test_no_server_is_unavailable_and_says_where(kind: str) -> None:
    with fake.serve(fake.says()) as server:
        pass
    error = refused(kind, server)
    assert isinstance(error, dopd.UnavailableError)
    assert server.endpoint in str(error)
    assert "dopd serve" in str(error)


def test_a_restarted_server_is_found_again() -> None:
    with fake.serve(fake.says(*fake.whole())) as server:
        client = dopd.Client(server.endpoint)
        assert client.generate("x").text == "Hello"
    port = int(server.endpoint.rpartition(":")[2])
    with pytest.raises(dopd.UnavailableError):
        client.generate("x")
    with fake.serve(fake.says(*fake.whole(["again"])), port=port):
        # The next attempt to connect may be up to two seconds away.
        wait_for(lambda: is_up(client), "the client is connected again", WAIT_S)
    client.close()


def is_up(client: dopd.Client) -> bool:
    try:
        return client.generate("x").text == "again"
    except dopd.UnavailableError:
        return False


@BOTH
def test_simple_calls_are_sent_again_too(kind: str) -> None:
    answer = pb.TokenizeResponse(token_ids=[1, 2], max_model_len=9)
    scripts = (fake.fails(UNAVAILABLE), fake.fails(UNAVAILABLE), fake.says(answer))
    with fake.serve(*scripts) as server:
        found = both_clients.call(kind, server.endpoint, "tokenize", "x")
    assert (found.token_ids, found.max_model_len) == ((1, 2), 9)
    assert len(server.calls) == 3


@BOTH
def test_health_is_asked_once(kind: str) -> None:
    with fake.serve(fake.fails(UNAVAILABLE)) as server:
        with pytest.raises(dopd.UnavailableError):
            both_clients.call(kind, server.endpoint, "health")
    assert len(server.calls) == 1


@BOTH
@pytest.mark.parametrize(
    ("data", "status"), [(b"\x08\x01", "serving"), (b"\x08\x02", "not_serving"), (b"", "unknown")]
)
def test_health_is_a_word(kind: str, data: bytes, status: str) -> None:
    with fake.serve(fake.says(data)) as server:
        assert both_clients.call(kind, server.endpoint, "health") == status
    asked = health_pb2.HealthCheckRequest.FromString(server.calls[0].request)
    assert asked.service == "dopd.v1.InferenceService"
