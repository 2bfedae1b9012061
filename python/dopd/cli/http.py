"""A small HTTP client over the standard library for the commands that talk to a server."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dopd.cli.console import UNHEALTHY, USAGE, CommandError

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 600.0
BODY_BYTES_MAX = 64 << 20
EVENT_BYTES_MAX = 1 << 20
SHOWN_BYTES_MAX = 200
PORTS = {"http": 80, "https": 443}
# What may stand in a header and in a request line.
PRINTABLE = re.compile(r"[!-~]*")


class HttpError(CommandError):
    """The server answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        fix = "--api-key KEY, or DOPD_API_KEY=KEY in the environment" if status == 401 else None
        super().__init__(f"the server answered {status}: {message}", fix=fix)
        self.status = status


def parse_url(url: str) -> SplitResult:
    """`url` in parts; host:port without a scheme is accepted, and a `/v1` at the end dropped."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        has_port = parts.port is not None
        # As resolving it will: labels that are empty or too long are refused.
        has_host = bool((parts.hostname or "").encode("idna"))
    except ValueError:
        raise _bad_url(url) from None
    netloc = parts.netloc.rpartition("@")[2]
    is_cut = ":" in netloc.rpartition("]")[2] and not has_port
    path = parts.path.rstrip("/").removesuffix("/v1")
    if parts.scheme not in PORTS or not has_host or is_cut or not PRINTABLE.fullmatch(path):
        raise _bad_url(url)
    return parts._replace(netloc=netloc, path=path, query="", fragment="")


def _bad_url(url: str) -> CommandError:
    message = f"{url!r} is not an address of the form http://HOST:PORT"
    return CommandError(message, fix=f"--url {DEFAULT_URL}", code=USAGE)


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and the key to it."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.api_key and not PRINTABLE.fullmatch(self.api_key):
            message = "the API key holds blanks or characters that are not printable ASCII"
            raise CommandError(message, fix="look for a line end after it", code=USAGE)

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def path(self, path: str) -> str:
        """`path` below the path of the URL."""
        return parse_url(self.url).path + path

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, already open."""
        parts = parse_url(self.url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
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

    def get_json(self, path: str, needed: str) -> Any:
        """The JSON object at `path`; it must have the field `needed`, or this is another server."""
        connection = self.connect(TIMEOUT_S)
        try:
            connection.request("GET", self.path(path), headers=self.headers())
            response = connection.getresponse()
            body = response.read(BODY_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"GET {path} failed: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise HttpError(response.status, error_message(body))
        question = f"is {self.url} a dopd server"
        try:
            found = json.loads(body)
        except ValueError as error:
            message = f"the answer to GET {path} is not JSON; {question}"
            raise CommandError(message) from error
        if not isinstance(found, dict) or needed not in found:
            raise CommandError(f"the answer to GET {path} has no {needed!r}; {question}")
        return found

    def served_model(self) -> str:
        """Name of the first model that the server lists."""
        models = self.get_json("/v1/models", "data")["data"]
        if not models:
            message = f"the server at {self.url} serves no model"
            raise CommandError(message, code=UNHEALTHY)
        try:
            return str(models[0]["id"])
        except (LookupError, TypeError) as error:
            message = f"the answer to GET /v1/models names no model; is {self.url} an OpenAI server"
            raise CommandError(message) from error

    def post_events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Events of a streamed answer as they arrive. Closing the iterator ends the request."""
        connection = self.connect(STREAM_TIMEOUT_S)
        headers = {"content-type": "application/json"} | self.headers()
        try:
            connection.request("POST", self.path(path), json.dumps(body).encode(), headers)
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
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        shown = data[:SHOWN_BYTES_MAX].decode(errors="replace")
        raise CommandError(f"an event of the answer is no JSON object: {shown}")
    if error := event.get("error"):
        message = error.get("message", error) if isinstance(error, dict) else error
        raise CommandError(f"the answer failed: {message}")
    return event


def error_message(body: bytes) -> str:
    """The message of an error body in OpenAI's form or of a page, or the start of what came."""
    try:
        found = json.loads(body)
        return str(found["error"]["message"] if "error" in found else found["status"])
    except (ValueError, KeyError, TypeError):
        return body[:SHOWN_BYTES_MAX].decode(errors="replace").strip() or "no message"
