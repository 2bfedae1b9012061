"""What the load generator notes of requests that do not end well."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from dopd.cli.bench.arguments import parse
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.load import Client, Sample
from dopd.cli.http import Server

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"text":"a"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that says `answer` to whatever comes first, and then nothing more."""

    is_left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            # Until the client leaves.
            await reader.read()
            writer.close()
            await writer.wait_closed()
        is_left.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        await is_left.wait()


def client_of(url: str, timeout_s: str) -> Client:
    return Client(Server(url), parse(["--concurrency", "1", "--timeout", timeout_s]))


def new_sample() -> Sample:
    return Sample(Arrival(0.0, 1, 2), 0.0)


def test_a_request_out_of_time_says_so() -> None:
    """And not that the server closed the connection, which it did not."""

    async def run() -> Sample:
        async with answering(HEAD + chunk(EVENT)) as url:
            client, sample = client_of(url, "0.05"), new_sample()
            await client.send(sample, b"{}")
            # The loop tells the connection of its end.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return sample

    sample = asyncio.run(run())
    assert sample.error == "no answer within 0.05 s"
    assert not sample.is_complete


def test_a_whole_answer_is_complete_and_one_that_was_cancelled_is_not() -> None:
    async def run(answer: bytes) -> Sample:
        async with answering(answer) as url:
            client, sample = client_of(url, "30"), new_sample()
            task = asyncio.create_task(client.send(sample, b"{}"))
            while sample.last_s is None:
                await asyncio.sleep(0.001)
            if DONE not in answer:
                task.cancel()
            await asyncio.wait([task])
            client.close()
            return sample

    whole = asyncio.run(run(HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"))
    cut = asyncio.run(run(HEAD + chunk(EVENT)))
    assert (whole.is_complete, whole.error) == (True, None)
    assert (cut.is_complete, cut.error) == (False, None)
