"""What benches share: conditions, CPU time of processes, foreign load, results on disk."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "bench" / "results"
DOPD = [sys.executable, "-m", "dopd"]
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
ANY_PORTS = ("--port", "0", "--grpc-port", "0", "--worker-port", "0", "--metrics-port", "0")


def conditions() -> dict[str, Any]:
    """Where and on what a result was measured."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=REPO, capture_output=True, text=True, check=False).stdout
    cpu = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "commit": commit.strip(),
        "cores": os.cpu_count(),
        "cpu": cpu,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def finish(name: str, result: dict[str, Any]) -> int:
    """Write the result to bench/results and print it as the last line."""
    document = {"bench": name, "conditions": conditions(), **result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document), flush=True)
    return 0


def skip(name: str, reason: str) -> int:
    """Say why a bench cannot run here; that is no failure."""
    print(f"{name} skipped: {reason}", flush=True)
    return 0


def free_port() -> int:
    """A port that was free a moment ago, below those that clients get.

    A client that dials a free port of its own range over and over may at last connect to itself.
    """
    for port in random.sample(range(20_000, 30_000), k=100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no free port between 20000 and 30000")


def binary(name: str) -> Path:
    """A cargo binary, the release build if there is one. Raises RuntimeError."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target")
    for profile in ("release", "local", "debug"):
        if (path := target / profile / name).is_file():
            return path
    raise RuntimeError(f"{name} is not built; make build")


def rss_bytes(pid: int) -> int:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no VmRSS")


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of one process, from the scheduler's own counters."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


def busy_ns() -> int:
    """CPU time that anybody used on this machine, steal left out."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, _ = fields
    return (user + nice + system + irq + softirq) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass
class Meter:
    """CPU time of named processes over a block, and of everybody else (`foreign`, in cores)."""

    pids: dict[str, int]
    seconds: float = 0.0
    used_ns: dict[str, int] = field(default_factory=dict)
    foreign: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[Meter]:
        """Measure from here to the end of the block."""
        before = {name: cpu_ns(pid) for name, pid in self.pids.items()}
        busy, start = busy_ns(), time.monotonic()
        yield self
        self.seconds = time.monotonic() - start
        self.used_ns = {name: cpu_ns(pid) - before[name] for name, pid in self.pids.items()}
        self.foreign = (busy_ns() - busy - sum(self.used_ns.values())) / 1e9 / self.seconds


@contextlib.contextmanager
def started(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the time of the block, ended by its id; output goes to `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(ready: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """What the ready file says, once it is there."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not ready.exists() or not (text := ready.read_text()).rstrip().endswith("}"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.01)
    found: dict[str, Any] = json.loads(text)
    return found


@contextlib.contextmanager
def serving(*words: str) -> Iterator[dict[str, Any]]:
    """`dopd serve WORDS...` on free ports; yields what its ready file says."""
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        ready, log = Path(name) / "ready.json", Path(name) / "log.txt"
        command = [*DOPD, "serve", *words, *ANY_PORTS, "--ready-file", str(ready)]
        with started(command, log) as process:
            yield wait_ready(ready, process, log)
