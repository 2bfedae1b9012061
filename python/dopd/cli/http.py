"""A small HTTP client over the standard library for the commands that talk to a server."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dopd.cli.console import UNHEALTHY, USAGE, CommandError

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 600.0
BODY_BYTES_MAX = 64 << 20
EVENT_BYTES_MAX = 1 << 20


class HttpError(CommandError):
    """The server answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server answered {status}: {message}")
        self.status = status


def parse_url(url: str) -> SplitResult:
    """`url` in parts; host:port without a scheme is accepted."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or (":" in parts.netloc and port is None):
        message = f"{url!r} is not an address of the form http://HOST:PORT"
        raise CommandError(message, fix=f"--url {DEFAULT_URL}", code=USAGE)
    return parts


def connect(url: str, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to the server at `url`, already open."""
    parts = parse_url(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=timeout_s
    )
    try:
        connection.connect()
    except OSError as error:
        reason = error.strerror or str(error)
        raise CommandError(
            f"no server at {parts.netloc}: {reason.lower()}",
            fix="dopd serve --mock starts one; --url names another address",
            code=UNHEALTHY,
        ) from error
    return connection


def get_json(url: str, path: str, needed: str) -> Any:
    """The JSON object at `path`; it must have the field `needed`, or this is no dopd server."""
    connection = connect(url, TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(BODY_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"GET {path} failed: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise HttpError(response.status, error_message(body))
    try:
        found = json.loads(body)
    except ValueError as error:
        message = f"the answer to GET {path} is not JSON; is {url} a dopd server"
        raise CommandError(message) from error
    if not isinstance(found, dict) or needed not in found:
        raise CommandError(f"the answer to GET {path} has no {needed!r}; is {url} a dopd server")
    return found


def post_events(url: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events of a streamed answer as they arrive. Closing the iterator closes the connection."""
    connection = connect(url, STREAM_TIMEOUT_S)
    try:
        payload = json.dumps(body).encode()
        connection.request("POST", path, payload, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise HttpError(response.status, error_message(response.read(BODY_BYTES_MAX)))
        while line := response.readline(EVENT_BYTES_MAX):
            data = line.strip().removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:"):
                yield _event(data)
        raise CommandError("the server closed the connection before the answer ended")
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"POST {path} failed: {error}") from error
    finally:
        connection.close()


def _event(data: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise CommandError(f"the answer failed: {event['error'].get('message', event['error'])}")
    return event


def error_message(body: bytes) -> str:
    """The message of an error body in OpenAI's form, or the start of whatever came."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace").strip() or "no message"
