"""A running `dopd serve` as tests see it."""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import START_TIMEOUT_S, Process, ended, wait_for

TIMEOUT_S = 60.0
ANY_PORTS = ("--port", "0", "--grpc-port", "0", "--worker-port", "0", "--metrics-port", "0")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """OpenAI's error object; fails the test if there is none."""
        found: dict[str, Any] = self.json()["error"]
        return found


class Server:
    """Addresses and calls of one server."""

    def __init__(self, process: Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.pid: int = ready["pid"]
        self.http: str = ready["http"]
        self.grpc: str = ready["grpc"]
        self.workers: str = ready["workers"]
        self.admin: str = ready["admin"]
        self.model: str = ready["model"]
        self.join_token_file: str | None = ready["join_token_file"]
        self.url = f"http://{self.http}"

    def connection(self, address: str | None = None) -> http.client.HTTPConnection:
        """A new connection to the HTTP front, or to `address`."""
        return http.client.HTTPConnection(address or self.http, timeout=TIMEOUT_S)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        headers: dict[str, str] | None = None,
        address: str | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        sent = {"content-type": "application/json"} if data is not None else {}
        with contextlib.closing(self.connection(address)) as connection:
            connection.request(method, path, data, sent | (headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())

    def get(self, path: str, *, address: str | None = None) -> Answer:
        """GET `path`."""
        return self.call("GET", path, address=address)

    def banner(self) -> str:
        """What it prints for people, whole: it comes after the file that says that it is ready."""

        def printed() -> str | None:
            text = self.process.out.read_text()
            return text if "curl " in text and text.endswith("\n") else None

        return wait_for(printed, "the banner is printed")

    def complete(self, prompt: str | list[int], **fields: Any) -> dict[str, Any]:
        """One completion, not streamed; fails the test unless it succeeds."""
        body = {"model": self.model, "prompt": prompt, "temperature": 0} | fields
        answer = self.call("POST", "/v1/completions", body)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        """Events of a streamed answer as they come; the last one is the text `[DONE]`."""
        with contextlib.closing(self.connection()) as connection:
            data = json.dumps(body | {"stream": True})
            connection.request("POST", path, data, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.getheader("content-type", "").startswith("text/event-stream")
            for line in answer:
                if line.startswith(b"data: "):
                    data = line[len(b"data: ") :].strip().decode()
                    yield data if data == "[DONE]" else json.loads(data)

    def status(self) -> dict[str, Any]:
        """The fleet, from the listener that asks for no key."""
        found: dict[str, Any] = self.get("/status", address=self.admin).json()
        return found

    def wait_idle(self) -> dict[str, Any]:
        """The fleet once no request holds anything: no seat, every page free or cached."""

        def look() -> dict[str, Any] | None:
            fleet = self.status()
            busy = fleet["sequences_running"] or fleet["requests_waiting"]
            held = any(
                w["seats"] or w["pages"]["owned"] or w["pages"]["fenced"] for w in fleet["workers"]
            )
            return None if busy or held else fleet

        return wait_for(look, "every seat closed and every page given back")


@contextlib.contextmanager
def serve(
    *words: str | Path,
    command: str = "serve",
    env: dict[str, str] | None = None,
    ports: tuple[str, ...] = ANY_PORTS,
) -> Iterator[Server]:
    """`dopd serve WORDS...` on free ports, ready; ended by Ctrl-C, and nothing may be left."""
    with tempfile.TemporaryDirectory(prefix="dopd-test-") as name:
        folder = Path(name)
        ready_file = folder / "ready.json"
        words = (command, *words, *ports, "--ready-file", ready_file)
        with ended(Process(folder, *words, env=env)) as process:

            def ready() -> dict[str, Any] | None:
                text = ready_file.read_text() if ready_file.exists() else ""
                return json.loads(text) if text.endswith(("}", "}\n")) else None

            found = process.wait_until(ready, "the server is ready", START_TIMEOUT_S)
            yield Server(process, found)
            if process.popen.poll() is None:
                assert process.stop() == 0, process.told()
