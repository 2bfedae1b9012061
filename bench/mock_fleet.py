"""A router and a Rust mock process with workers, for benches under load."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.common import ANY_PORTS, binary, started, wait_ready


@contextlib.contextmanager
def fleet(settings: str, *mock: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Router with these settings, mock with these words; yields the HTTP address and the pids."""
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        folder = Path(name)
        token, ready, config = folder / "token", folder / "ready.json", folder / "dopd.toml"
        token.write_text("bench-token-of-enough-length-0123456789\n")
        token.chmod(0o600)
        config.write_text(settings)
        words = ["router", "--mock", *ANY_PORTS, "--log-level", "error", "--config", config]
        words += ["--join-token-file", token, "--ready-file", ready]
        log = folder / "router.txt"
        with started([str(word) for word in (binary("dopd-router"), *words)], log) as router:
            found = wait_ready(ready, router, log)
            command = [str(binary("dopd-mock")), *mock, "--log-level", "warn"]
            command += ["--join", found["workers"], "--join-token-file", str(token)]
            with started(command, folder / "mock.txt") as workers:
                yield found["http"], {"router": router.pid, "mock": workers.pid}
