"""The commands' HTTP client before a server that is not ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dopd.cli import app, chat, console, http, options


@contextmanager
def stranger(body: bytes) -> Iterator[str]:
    """A server that answers every GET with `body`; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not to stderr, which the tests read."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b'{"a":1}', b"[]", b"hello"])
@pytest.mark.parametrize("command", ["status", "bench", "chat"])
def test_a_server_that_is_not_dopd_is_named(
    command: str, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with stranger(body) as address:
        assert app.run([command, "--url", address]) == console.FAILED
        said = capsys.readouterr().err
    assert said.startswith("error: the answer to GET /")
    assert said.endswith(f"is {address} a dopd server\n")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://a:1", "/x"),
        ("http://a:1/", "/x"),
        ("http://a:1/v1", "/x"),
        ("https://a/llm/v1/", "/llm/x"),
    ],
)
def test_a_base_url_of_openai_clients_is_understood(url: str, path: str) -> None:
    assert http.Server(url).path("/x") == path


def test_a_key_is_sent_and_never_shown() -> None:
    server = http.Server("http://a:1", "sesame")
    assert server.headers() == {"authorization": "Bearer sesame"}
    assert "sesame" not in repr(server)
    assert http.Server("http://a:1").headers() == {}


def test_the_key_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOPD_API_KEY", "of-the-environment")
    args = chat.parser().parse_args([])
    assert options.server(args).api_key == "of-the-environment"
    args = chat.parser().parse_args(["--api-key", "given"])
    assert options.server(args).api_key == "given"


def test_a_refused_key_gets_its_fix() -> None:
    assert "DOPD_API_KEY" in (http.HttpError(401, "no").fix or "")
    assert http.HttpError(404, "no").fix is None


@pytest.mark.parametrize("url", ["http://[", "http://a..b:80", "http://a/\xe9", "http://a/b c"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(console.CommandError, match="is not an address") as caught:
        http.parse_url(url)
    assert caught.value.code == console.USAGE


def test_a_password_in_an_address_is_not_told() -> None:
    assert http.parse_url("http://me:sesame@a:1/v1").netloc == "a:1"


@pytest.mark.parametrize("key", ["sesame\n", "open sesame", "s\xe9same"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(console.CommandError, match="API key") as caught:
        http.Server("http://a:1", key)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("models", [b'[{"x":1}]', b'{"a":1}', b"[1]", b"7"])
def test_a_server_that_names_no_model_is_told(models: bytes) -> None:
    with stranger(b'{"data":' + models + b"}") as address:
        with pytest.raises(console.CommandError, match="names no model"):
            http.Server(address).served_model()


def test_a_status_of_another_kind_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with stranger(b'{"workers":[{"id":"x"}]}') as address:
        assert app.run(["status", "--url", address]) == console.FAILED
    assert "lacks 'pages'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"choices"', "no JSON object"),
        (b"[1]", "no JSON object"),
        (b'{"error":"boom"}', "failed: boom"),
        (b'{"error":{"message":"boom"}}', "failed: boom"),
    ],
)
def test_an_event_that_is_none_ends_the_answer(data: bytes, told: str) -> None:
    with pytest.raises(console.CommandError, match=told):
        http._event(data)
