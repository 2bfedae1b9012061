"""Where a client calls, as whom, and for how long; checked once, when the client is made."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc

from dopd import __version__, env
from dopd.client.errors import RequestError
from dopd.client.status import error_of

File: TypeAlias = str | os.PathLike[str]
ChannelOptions: TypeAlias = tuple[tuple[str, int | str], ...]

ENDPOINT_DEFAULT = "127.0.0.1:50051"
TIMEOUT_DEFAULT_S = 600.0
# Three years: gRPC takes far longer times for none at all.
TIMEOUT_MAX_S = 1e8
# Asked once, without retries: a probe wants the truth of the moment.
HEALTH_TIMEOUT_S = 5.0
# What a server may send in one message: the tokens of its longest text.
MESSAGE_BYTES_MAX = 64 << 20
KEEPALIVE_PERIOD_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
# gRPC begins at 1 s: a restarted server would stay unreachable for longer than it was gone.
RECONNECT_MIN_MS = 50
RECONNECT_MAX_MS = 2_000
LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\]):\d+")
HOST_PORT = re.compile(r"([^:/\[\]]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")
# gRPC takes greater ones, and calls another port.
PORT_MAX = 65_535
# Targets of other resolvers, as gRPC knows them.
RESOLVERS = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")
API_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Settings:
    """One client's settings.

    metadata: sent with every call; holds the key, so it is never shown.
    credentials: None for plain text.
    """

    endpoint: str
    timeout_s: float
    options: ChannelOptions
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    credentials: grpc.ChannelCredentials | None = field(repr=False)

    def timeout(self, given_s: float | None) -> float:
        """The time-out of one call."""
        return self.timeout_s if given_s is None else checked_timeout(given_s)

    def error_of(
        self, failure: grpc.RpcError, timeout_s: float, request_id: str | None = None
    ) -> RequestError:
        """The exception for a failed call."""
        return error_of(failure, endpoint=self.endpoint, timeout_s=timeout_s, request_id=request_id)


def make(
    endpoint: str | None,
    api_key: str | None,
    timeout_s: float,
    *,
    tls: bool,
    ca_file: File | None,
    cert_file: File | None,
    key_file: File | None,
) -> Settings:
    """Settings of a new client; raises ValueError where one cannot be."""
    endpoint = checked_endpoint(endpoint or env.get("ENDPOINT") or ENDPOINT_DEFAULT)
    api_key = api_key or env.get("API_KEY")
    if api_key and not API_KEY.fullmatch(api_key):
        raise ValueError("api_key holds blanks or characters that are not printable ASCII")
    if (cert_file is None) != (key_file is None):
        raise ValueError("cert_file and key_file belong together: give both or none")
    credentials = None
    if tls or ca_file is not None or cert_file is not None:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(ca_file),
            private_key=_read(key_file),
            certificate_chain=_read(cert_file),
        )
    return Settings(
        endpoint=endpoint,
        timeout_s=checked_timeout(timeout_s),
        options=_options(endpoint),
        metadata=(("authorization", f"Bearer {api_key}"),) if api_key else (),
        credentials=credentials,
    )


def checked_endpoint(endpoint: str) -> str:
    """`endpoint`, if gRPC will understand it as its user does."""
    found = HOST_PORT.fullmatch(endpoint)
    if endpoint.startswith(RESOLVERS) or (found and 0 < int(found[2]) <= PORT_MAX):
        return endpoint
    raise ValueError(
        f"endpoint is {endpoint!r}, it must be HOST:PORT of the server's gRPC listener, "
        f"such as {ENDPOINT_DEFAULT}, without http://"
    )


def checked_timeout(timeout_s: float) -> float:
    """`timeout_s`, if it is a time."""
    try:
        is_time = 0 < timeout_s <= TIMEOUT_MAX_S
    except TypeError:
        raise TypeError(f"timeout_s is {timeout_s!r}, it must be a number of seconds") from None
    if not is_time:
        raise ValueError(
            f"timeout_s is {timeout_s!r}, it must be above 0 and at most {TIMEOUT_MAX_S:g} seconds"
        )
    return float(timeout_s)


def _options(endpoint: str) -> ChannelOptions:
    options: ChannelOptions = (
        ("grpc.primary_user_agent", f"dopd-python/{__version__}"),
        ("grpc.keepalive_time_ms", KEEPALIVE_PERIOD_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        # `retry` is the one place that sends again.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        # Channels of a pool must not share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    )
    if LOOPBACK.fullmatch(endpoint):
        return (*options, ("grpc.enable_http_proxy", 0))
    return options


def _read(file: File | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()
