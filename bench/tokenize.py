"""What preparing a prompt costs, and whether a long one holds up the streams of others.

With one front thread, so that nothing can hide on another. Phases:
- cost: CPU of the router for POST /tokenize (read, parse, check, tokenize, write) of prompts of
  30, 3,000 and 30,000 tokens, one at a time, with SmolLM2's tokenizer;
- probe: a short /tokenize every STEP_MS on its own connection, alone and while prompts of 30,000
  tokens arrive one after another; its worst and median answer time is what the front thread was
  held up;
- stream: a paced stream of the mock engine beside the same, whose tokenizer is one of bytes; worst
  and median gap between two of its events.
`foreign` (cores used by others) stands beside: on a shared machine only the ratio counts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.common import ANY_PORTS, DOPD, Meter, finish, serving, skip, started, wait_ready
from dopd.cli.native import packaged_model

SIZES = (30, 3_000, 30_000)
REQUESTS = {30: 400, 3_000: 60, 30_000: 12}
LONG = SIZES[-1]
STEP_MS = 20
STREAM_TOKENS = 250
WORDS = "the quick brown fox jumps over the lazy dog and the caf\u00e9 pays for all of it "
PROBES = 150
TIMINGS = "h100-8b"


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> dict[str, Any]:
    """One request on a connection that stays open."""
    connection.request("POST", path, body, {"content-type": "application/json"})
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{path}: {reply.status} {content[:200]!r}")
    found: dict[str, Any] = json.loads(content)
    return found


@contextlib.contextmanager
def connected(url: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to the server at `url`."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        yield connection
    finally:
        connection.close()


def text_of(connection: http.client.HTTPConnection, tokens: int) -> str:
    """A text of about `tokens` tokens."""
    sample = WORDS * 40
    count: int = post(connection, "/tokenize", json.dumps({"prompt": sample}).encode())["count"]
    wanted = len(sample) * tokens // count
    return (sample * (wanted // len(sample) + 1))[:wanted]


def cost(url: str, pid: int) -> dict[str, Any]:
    """Microseconds of CPU and of time per prompt, by its size."""
    result = {}
    with connected(url) as connection:
        for size in SIZES:
            prompt = text_of(connection, size)
            body = json.dumps({"prompt": prompt}).encode()
            tokens = post(connection, "/tokenize", body)["count"]
            meter, times = Meter({"router": pid}), []
            with meter.running():
                for _ in range(REQUESTS[size]):
                    start = time.perf_counter()
                    post(connection, "/tokenize", body)
                    times.append(time.perf_counter() - start)
            used_us = meter.used_ns["router"] / 1e3 / REQUESTS[size]
            result[str(size)] = {
                "tokens": tokens,
                "bytes": len(body),
                "cpu_us": round(used_us, 1),
                "cpu_us_per_token": round(used_us / tokens, 3),
                "median_ms": round(statistics.median(times) * 1e3, 3),
                "foreign": round(meter.foreign, 2),
            }
    return result


def gaps_ms(url: str) -> list[float]:
    """Times between the events of one paced stream."""
    body = {"prompt": "x", "max_tokens": STREAM_TOKENS, "ignore_eos": True, "stream": True}
    with connected(url) as connection:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        times = []
        while line := reply.readline():
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
    return [(later - before) * 1e3 for before, later in pairwise(times)]


def send_long(url: str, stop: threading.Event, sent: list[int]) -> None:
    """Long prompts one after another, until told to stop."""
    with connected(url) as connection:
        body = json.dumps({"prompt": text_of(connection, LONG)}).encode()
        while not stop.is_set():
            post(connection, "/tokenize", body)
            sent.append(len(body))


def summary(gaps: list[float]) -> dict[str, float]:
    """Worst and median of a stream's gaps."""
    return {"worst_ms": round(max(gaps), 2), "median_ms": round(statistics.median(gaps), 2)}


def probes_ms(url: str) -> list[float]:
    """Answer times of short requests, sent at a steady pace."""
    body, times = json.dumps({"prompt": "hello"}).encode(), []
    with connected(url) as connection:
        due = time.perf_counter()
        for _ in range(PROBES):
            due += STEP_MS / 1e3
            time.sleep(max(0.0, due - time.perf_counter()))
            start = time.perf_counter()
            post(connection, "/tokenize", body)
            times.append((time.perf_counter() - start) * 1e3)
    return times


def beside_long(url: str, times_ms: Callable[[str], list[float]]) -> dict[str, Any]:
    """Times alone, then beside long prompts."""
    alone = summary(times_ms(url))
    stop, sent = threading.Event(), list[int]()
    sender = threading.Thread(target=send_long, args=(url, stop, sent))
    sender.start()
    try:
        beside = summary(times_ms(url))
    finally:
        stop.set()
        sender.join()
    return {"alone": alone, "beside_long_prompts": beside, "long_prompts": len(sent)}


@contextlib.contextmanager
def routing(tokenizer: str) -> Iterator[dict[str, Any]]:
    """A router that only knows a tokenizer; yields what its ready file says."""
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        ready, log = Path(name) / "ready.json", Path(name) / "log.txt"
        command = [*DOPD, "router", "--tokenizer", tokenizer, *ANY_PORTS]
        with started([*command, "--ready-file", str(ready)], log) as process:
            yield wait_ready(ready, process, log)


def main(argv: list[str]) -> int:
    """Run everything; see the module."""
    del argv
    os.environ["DOPD_HTTP__THREADS"] = "1"
    tokenizer = packaged_model("smollm2")
    if tokenizer is None:
        return skip("tokenize", "SmolLM2's tokenizer is not installed")
    with routing(tokenizer) as found:
        url = f"http://{found['http']}"
        result = {"cost": cost(url, found["pid"]), "probe": beside_long(url, probes_ms)}
    with serving("--mock", "--mixed", "1", "--mock-timings", TIMINGS) as found:
        result["stream"] = beside_long(f"http://{found['http']}", gaps_ms)
    return finish("tokenize", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
