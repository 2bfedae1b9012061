"""Exceptions: complete, readable, and what programs need of them."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import pytest

import dopd
from dopd import errors as table
from dopd.client import errors
from dopd.client.status import error_of
from tests.support import fake_inference as fake


class Failure(grpc.RpcError):
    """A failed call as grpc raises it."""

    def __init__(self, code: grpc.StatusCode, message: str | None, *details: Any) -> None:
        self._told = (code, message)
        data = fake.status_details(code, message or "", *details) if details else None
        self._trailers = ((fake.DETAILS, data),) if data else None

    def code(self) -> grpc.StatusCode:
        return self._told[0]

    def details(self) -> str | None:
        return self._told[1]

    def trailing_metadata(self) -> Any:
        return self._trailers


def told(failure: Failure, request_id: str | None = None) -> dopd.RequestError:
    return error_of(failure, endpoint="host:1", timeout_s=7, request_id=request_id)


def test_every_reason_of_the_table_has_its_class() -> None:
    assert list(errors.REASONS) == [kind.code for kind in table.ERROR_KINDS]


@pytest.mark.parametrize("kind", table.ERROR_KINDS, ids=lambda kind: kind.code)
def test_a_reason_becomes_its_exception(kind: table.ErrorKind) -> None:
    code = grpc.StatusCode[kind.grpc]
    error = told(Failure(code, "what happened", fake.info(kind.code)))
    assert type(error) is errors.REASONS[kind.code]
    assert (error.reason, error.status) == (kind.code, kind.grpc)
    assert error.is_retryable == kind.is_retryable
    assert str(error).startswith("what happened")
    assert kind.code in str(error)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_status_alone_becomes_an_exception(code: grpc.StatusCode) -> None:
    error = told(Failure(code, None))
    assert isinstance(error, dopd.RequestError)
    assert error.status == code.name
    assert code.name in str(error)
    assert "host:1" in str(error)


def test_the_message_tells_reason_request_attempts_and_what_to_do() -> None:
    error = told(Failure(grpc.StatusCode.UNAUTHENTICATED, "no key", fake.info("unauthenticated")))
    error.request_id, error.attempts = "id-1", 3
    assert str(error) == (
        "no key; pass api_key to the client or set DOPD_API_KEY "
        "(unauthenticated, request id-1, 3 attempts)"
    )


def test_a_deadline_names_the_limit_and_is_a_timeout_error() -> None:
    error = told(Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "id-2")
    assert isinstance(error, TimeoutError)
    assert "timeout_s is 7" in str(error)
    assert error.request_id == "id-2"


@pytest.mark.parametrize(
    ("wire", "parameter"),
    [
        ("options.sampling.temperature", "temperature"),
        ("options.stop", "stop"),
        ("messages[0].role", "messages[0].role"),
        ("prompt", "prompt"),
    ],
)
def test_the_field_is_the_parameter_of_the_client(wire: str, parameter: str) -> None:
    from google.rpc.error_details_pb2 import BadRequest

    bad = BadRequest(field_violations=[BadRequest.FieldViolation(field=wire)])
    error = told(Failure(grpc.StatusCode.INVALID_ARGUMENT, "m", fake.info("invalid_value"), bad))
    assert isinstance(error, dopd.InvalidRequestError)
    assert error.field == parameter


def test_exceptions_survive_pickling() -> None:
    for kind in {*errors.REASONS.values(), errors.BrokenStreamError}:
        error = kind("m", reason="r", request_id="i", retry_after_s=1.5)
        error.attempts = 2
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(copy), str(copy), copy.retry_after_s) == (kind, str(error), 1.5)


def test_one_root_catches_all() -> None:
    assert issubclass(dopd.RequestError, dopd.DopdError)
    for kind in {*errors.REASONS.values(), *errors.STATUSES.values()}:
        assert issubclass(kind, dopd.RequestError)
