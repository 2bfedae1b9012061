"""How long from Enter to the first token: `dopd serve --mock`, and `make serve` on a built tree.

A client dials from the moment of Enter until somebody answers, as a user's script would.
Regime: an idle machine, everything built and in the page cache; the first run warms up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.common import DOPD, REPO, finish, free_port, started

RUNS = 7
MAKE_RUNS = 3
LIMIT_S = 120.0
POLL_S = 0.002


def first_token_s(command: list[str], port: int) -> float:
    """Seconds from starting `command` to the first byte of text on `port`."""
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        log = Path(name) / "log.txt"
        start = time.monotonic()
        with started(command, log, cwd=REPO) as process:
            while time.monotonic() - start < LIMIT_S:
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-2000:])
                with contextlib.suppress(OSError, http.client.HTTPException):
                    ask(port)
                    return time.monotonic() - start
                time.sleep(POLL_S)
    raise RuntimeError(f"no token within {LIMIT_S} s")


def ask(port: int) -> None:
    """Return at the first event of a streamed answer; OSError if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    with contextlib.closing(connection):
        body = json.dumps({"prompt": "Hello", "max_tokens": 1, "stream": True, "temperature": 0})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200 or not answer.readline().startswith(b"data: "):
            raise OSError(f"status {answer.status}")


def measure(command: list[str], runs: int) -> dict[str, float]:
    """Minimum, median and maximum over `runs`, after one that warms up."""
    seconds = []
    for _ in range(runs + 1):
        port = free_port()
        others = ["--grpc-port", "0", "--worker-port", "0", "--metrics-port", "0"]
        words = ["--port", str(port), *others]
        whole = [*command, f"ARGS={' '.join(words)}"] if command[0] == "make" else command + words
        seconds.append(first_token_s(whole, port))
    kept = seconds[1:]
    return {"min": min(kept), "median": statistics.median(kept), "max": max(kept), "runs": runs}


def main(argv: list[str]) -> int:
    """Measure both; with `mock` as argument only the first."""
    result = {"serve_mock_s": measure([*DOPD, "serve", "--mock"], RUNS)}
    if argv != ["mock"]:
        result["make_serve_s"] = measure(["make", "--silent", "serve"], MAKE_RUNS)
    return finish("start", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
