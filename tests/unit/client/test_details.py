"""Details are read as Google's own classes write them, and bad bytes never raise."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2 as google
from hypothesis import given
from hypothesis import strategies as st

from dopd.client import details
from tests.support import fake_inference as fake

CODE = grpc.StatusCode.UNAVAILABLE


def parsed(*messages: object) -> details.Details:
    return details.parse(fake.status_details(CODE, "message", *messages))  # type: ignore[arg-type]


def test_every_part_is_read() -> None:
    violations = [google.BadRequest.FieldViolation(field=name, description="d") for name in "ab"]
    found = parsed(
        google.ErrorInfo(reason="queue_full", domain="dopd", metadata={"a": "b"}),
        google.BadRequest(field_violations=violations),
        fake.retry_in(1.25),
        google.RequestInfo(request_id="id-7", serving_data="s"),
        google.Help(links=[google.Help.Link(url="u")]),
    )
    assert found == details.Details("queue_full", "a", 1.25, "id-7")


def test_another_domain_says_nothing_about_our_reasons() -> None:
    assert parsed(google.ErrorInfo(reason="queue_full", domain="googleapis.com")).reason == ""


def test_a_negative_delay_is_none() -> None:
    for duration in (duration_pb2.Duration(seconds=-1), duration_pb2.Duration(nanos=-1)):
        assert parsed(google.RetryInfo(retry_delay=duration)).retry_after_s is None


def test_a_delay_of_nothing_is_at_once() -> None:
    assert parsed(google.RetryInfo()).retry_after_s == 0.0


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x1a\x05ab",
        b"\x1b",
        b"\x09123",
        b"\x1a\x02\x08",
        b"\x80" * 11,
    ],
)
def test_broken_bytes_are_no_details(data: bytes) -> None:
    assert details.parse(data) == details.Details()


def test_what_stands_before_broken_bytes_is_kept() -> None:
    data = fake.status_details(CODE, "m", fake.info("draining"))
    assert details.parse(data + b"\xff").reason == "draining"


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    details.parse(data)


@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.integers(0, 10**6),
    st.integers(0, 999_999_999),
    st.data(),
)
def test_any_details_come_back_and_survive_a_flipped_byte(
    reason: str, field: str, seconds: int, nanos: int, data: st.DataObject
) -> None:
    messages = (
        google.ErrorInfo(reason=reason, domain="dopd"),
        google.BadRequest(field_violations=[google.BadRequest.FieldViolation(field=field)]),
        google.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds, nanos=nanos)),
    )
    written = bytearray(fake.status_details(CODE, "m", *messages))
    expected = details.Details(reason, field or None, seconds + nanos / 1e9, None)
    assert details.parse(bytes(written)) == expected
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    details.parse(bytes(written))
