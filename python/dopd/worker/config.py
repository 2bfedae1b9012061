"""Everything that a worker can be told, checked once. `args` fills it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dopd.errors import ConfigError
from dopd.kv.size import parse_memory
from dopd.types import Role

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
TRANSPORTS = ("cuda_ipc", "nccl", "shm", "tcp")
AUTO = "auto"
# The link's join token travels in the clear.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker; units in the names. Raises ConfigError when made of nonsense."""

    role: Role
    join: str
    join_token: str = field(repr=False)
    model: Path | None = None
    mock: bool = False
    name: str = ""
    served_model_name: str | None = None
    data_host: str = "127.0.0.1"
    data_advertise: str | None = None
    transports: str = AUTO
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    cascade_attention: bool = False
    kv_memory: str | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    cuda_graphs: bool = True
    max_num_seqs: int = 256
    max_batch_tokens: int | None = None
    page_size: int = 16
    mock_timings: str = "instant"
    timings: Path | None = None
    threads: int = 1
    drain_timeout: int = 120
    exit_on_stdin_eof: bool = False
    log_level: str = "info"
    log_format: str = "text"
    otel: str | None = None
    # For tests; see `engine/mock_faults`, `KvMemory`, `sched/audit`.
    mock_faults: Sequence[str] = ()
    kv_poison: bool = False
    debug_checks: bool = False

    def __post_init__(self) -> None:
        self._check_mock()
        if not re.fullmatch(r"[a-zA-Z0-9._-]{1,64}", self.name):
            raise ConfigError(f"name {self.name!r} is not 1 to 64 of a-z A-Z 0-9 . _ -")
        hosts = [_host(self.join, "join address"), self.data_host]
        if self.data_advertise is not None:
            hosts.append(_host(self.data_advertise, "data address"))
        for host_setting in hosts:
            if host_setting not in LOOPBACK:
                raise ConfigError(
                    f"{host_setting} is not loopback: there is no encryption between workers yet"
                )
        names = self.transport_names
        if not set(names) <= set(TRANSPORTS) or len(set(names)) < len(names):
            raise ConfigError(
                f"transports {self.transports!r} is neither auto nor a list of "
                f"{', '.join(TRANSPORTS)}, best first"
            )
        self._check_numbers()
        if self.kv_memory is not None:
            parse_memory(self.kv_memory)
        if not self.join_token:
            raise ConfigError("no join token: set DOPD_JOIN_TOKEN or give --join-token-file")
        self._check_logs()

    def _check_mock(self) -> None:
        if self.mock == (self.model is not None):
            raise ConfigError("give either --model PATH or --mock")
        if self.mock_faults and not self.mock:
            raise ConfigError("--mock-fault is for --mock: a model has none to offer")
        if self.timings is not None and self.mock:
            raise ConfigError("--timings is of a model's steps; a mock has --mock-timings")

    def _check_logs(self) -> None:
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log level {self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(f"log format {self.log_format!r} is none of {', '.join(LOG_FORMATS)}")
        if self.otel is not None and not self.otel.startswith("http://"):
            raise ConfigError(f"otel is {self.otel!r}: spans go to plain gRPC, http://HOST:PORT")

    def _check_numbers(self) -> None:
        for setting in ("max_num_seqs", "page_size", "threads"):
            if getattr(self, setting) < 1:
                raise ConfigError(f"{setting} is {getattr(self, setting)}, at least 1 is needed")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}, must be above 0 and at "
                "most 1: a share of the device's memory"
            )
        if self.drain_timeout < 0:
            raise ConfigError(f"drain_timeout is {self.drain_timeout}, at least 0 s are needed")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"max_model_len is {self.max_model_len}, at least 2 is needed")
        if self.max_batch_tokens is not None and self.max_batch_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_batch_tokens is {self.max_batch_tokens}, but every one of max_num_seqs "
                f"({self.max_num_seqs}) sequences may need one in a step"
            )

    @property
    def transport_names(self) -> tuple[str, ...]:
        """Ways to move pages that must be opened, best first; none: those that there are."""
        if self.transports == AUTO:
            return ()
        return tuple(name.strip() for name in self.transports.split(","))

    def batch_tokens(self, device: str) -> int:
        """Token budget of a step: a GPU wants large chunks, a CPU stalls everyone with them."""
        default = 512 if device.startswith("cpu") else 8192
        return self.max_batch_tokens or max(default, self.max_num_seqs)


def _host(address: str, what: str) -> str:
    """The host of HOST:PORT. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{what} {address!r} is not HOST:PORT")
    return host.strip("[]")
