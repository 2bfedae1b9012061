"""The load generator's parser takes answers in any pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.cli.bench.stream import ProtocolError, Response, State

EVENTS = [
    b'data: {"choices":[{"text":"a"}]}\n\n',
    b'data: {"choices":[{"text":"b"}]}\n\ndata: {"choices":[{"text":"c"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":17}}\n\n',
    b"data: [DONE]\n\n",
]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
ANSWER = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in EVENTS) + b"0\r\n\r\n"


@given(st.lists(st.integers(0, len(ANSWER)), max_size=40))
def test_any_split_gives_the_same_answer(cuts: list[int]) -> None:
    response = Response()
    edges = [0, *sorted(cuts), len(ANSWER)]
    events = sum(response.feed(ANSWER[start:end]) for start, end in itertools.pairwise(edges))
    assert response.state is State.DONE
    assert (response.status, events, response.is_done_seen) == (200, 3, True)
    assert response.completion_tokens() == 17
    assert response.can_reuse


def test_an_error_keeps_its_body_and_closing_is_seen() -> None:
    body = b'{"error":{"message":"queue full"}}'
    head = b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    response = Response()
    response.feed(head + body)
    assert response.state is State.DONE
    assert (response.status, bytes(response.body), response.can_reuse) == (503, body, False)


def test_the_usage_is_found_however_the_tail_is_cut() -> None:
    response = Response()
    filler = b"data: " + b"x" * 5_000 + b"\n\n"
    for event in (filler, EVENTS[2], EVENTS[3]):
        for at in range(0, len(event), 7):
            piece = event[at : at + 7]
            head = HEAD if response.state is State.HEAD else b""
            response.feed(head + b"%x\r\n%s\r\n" % (len(piece), piece))
    assert response.is_done_seen
    assert response.completion_tokens() == 17


def test_an_error_inside_a_stream_is_found() -> None:
    event = b'data: {"error":{"message":"the deadline passed","type":"timeout_error"}}\n\n'
    response = Response()
    response.feed(HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(event), event))
    assert (response.state, response.is_done_seen) == (State.DONE, False)
    assert response.error() == "the deadline passed"


def test_only_text_that_can_be_seen_counts() -> None:
    events = (
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"delta": {"content": "a"}}]}\n\n',
        b'data: {"choices":[{"text":""}]}\n\n',
        rb'data: {"choices":[{"text":"\"text\":\"x"}]}' + b"\n\n",
        EVENTS[3],
    )
    response = Response()
    counts = [
        response.feed((HEAD if e is events[0] else b"") + b"%x\r\n%s\r\n" % (len(e), e))
        for e in events
    ]
    assert counts == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 70_000,
        HEAD + b"y" * 300,
        HEAD + b"zz\r\n",
        HEAD + b"fffffff\r\n",
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises((ProtocolError, ValueError)):
        Response().feed(data)
