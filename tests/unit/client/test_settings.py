"""Where a client calls, and as whom."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

import dopd
from dopd.client import settings
from tests.support import both_clients
from tests.support import fake_inference as fake

BOTH = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
PLAIN: Any = {"tls": False, "ca_file": None, "cert_file": None, "key_file": None}


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:50051", "127.0.0.1:1", "[::1]:50051", "a.b:443", "dns:///a:1", "unix:/tmp/x"],
)
def test_endpoints_that_are_taken(endpoint: str) -> None:
    assert dopd.Client(endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["http://a:8000", "localhost", "grpcs://a:1", "a:b", ":1", "::1", "a:1/v1", "a:65536", "a:0"],
)
def test_other_endpoints_are_refused_with_what_would_do(endpoint: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT") as caught:
        dopd.Client(endpoint)
    assert endpoint in str(caught.value)


def test_the_environment_is_second_to_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOPD_ENDPOINT", "there:2")
    monkeypatch.setenv("DOPD_API_KEY", "from-env")
    found = settings.make(None, None, 1, **PLAIN)
    assert (found.endpoint, found.metadata) == ("there:2", (("authorization", "Bearer from-env"),))
    found = settings.make("here:1", "given", 1, **PLAIN)
    assert (found.endpoint, found.metadata) == ("here:1", (("authorization", "Bearer given"),))
    monkeypatch.delenv("DOPD_ENDPOINT")
    monkeypatch.delenv("DOPD_API_KEY")
    found = settings.make(None, None, 1, **PLAIN)
    assert (found.endpoint, found.metadata) == (settings.ENDPOINT_DEFAULT, ())


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel", "\t"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        dopd.Client("a:1", api_key=key)
    assert key.strip() == "" or key not in str(caught.value)


def test_a_client_never_shows_its_key() -> None:
    client = dopd.Client("a:1", api_key="secret-7")
    assert repr(client) == "Client('a:1')"
    assert "secret-7" not in repr(client._link.settings)


@pytest.mark.parametrize("timeout_s", [0, -1, 1e9, float("nan"), float("inf")])
def test_a_timeout_is_a_time(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        dopd.Client("a:1", timeout_s=timeout_s)
    with pytest.raises(ValueError, match="timeout_s"):
        dopd.Client("a:1").generate("x", timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [None, "3"])
def test_a_timeout_is_a_number(timeout_s: Any) -> None:
    with pytest.raises(TypeError, match="timeout_s"):
        dopd.Client("a:1", timeout_s=timeout_s)


def test_the_own_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong together"):
        dopd.Client("a:1", cert_file=tmp_path / "cert.pem")


@BOTH
def test_key_timeout_and_name_arrive_at_the_server(kind: str) -> None:
    with fake.serve(fake.says(*fake.whole())) as server:
        both_clients.call(
            kind, server.endpoint, "generate", "x", client={"api_key": "k1"}, timeout_s=20
        )
    [call] = server.calls
    assert call.metadata["authorization"] == "Bearer k1"
    assert call.metadata["user-agent"].startswith("dopd-python/")
    assert 10 < call.remaining_s <= 20.5


@BOTH
def test_tls_with_a_certificate_of_ones_own(kind: str, tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with fake.serve(fake.says(*fake.whole()), credentials=credentials) as server:
        trusting = {"ca_file": cert}
        answer = both_clients.call(kind, server.endpoint, "generate", "x", client=trusting)
        assert answer.text == "Hello"
        with pytest.raises(dopd.UnavailableError):
            both_clients.call(kind, server.endpoint, "generate", "x", client={"tls": True})
