"""Log lines: one a request, stable fields, and never what was asked or answered."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from tests.support.processes import wait_for
from tests.support.server import serve

MARKER = "xyzzy-the-prompt-marker"
REQUEST_FIELDS = {
    "timestamp", "level", "target", "message", "id", "client_id", "tenant", "key", "in", "out",
    "cached", "ttft_ms", "tpot_ms", "prefill_worker", "decode_worker", "handoffs", "replays",
    "code", "duration_ms",
}  # fmt: skip


def _objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_one_line_a_request_and_no_word_of_prompt_or_answer() -> None:
    length = {"max_tokens": 40, "ignore_eos": True}
    chat = {"messages": [{"role": "user", "content": MARKER}]} | length
    words = ("--mock", "--mock-timings", "h100-8b", "--log-format", "json", "--log-level", "trace")
    with serve(*words) as server:
        named = {"x-client-request-id": "run-7"}
        body = {"prompt": MARKER, "model": "mock"} | length
        answer = server.call("POST", "/v1/completions", body, headers=named)
        text = answer.json()["choices"][0]["text"]
        assert len(text) >= 20
        streamed = "".join(
            event["choices"][0]["delta"].get("content") or ""
            for event in server.events("/v1/chat/completions", chat)
            if isinstance(event, dict) and event["choices"]
        )
        refused = server.call("POST", "/v1/completions", body | {"n": 10_000})
        assert refused.status == 400
        unread = server.call("POST", "/v1/completions", f'{{"prompt": "{MARKER}'.encode())
        assert unread.status == 400

        def told() -> bool:
            return "request refused" in server.process.told()

        wait_for(lambda: told() or None, "the refusal is logged")
        server.wait_idle()
        log = server.process.told()
    assert MARKER not in log
    assert text[:20] not in log and streamed[:20] not in log
    lines = _objects(log)
    done = [line for line in lines if line.get("message") == "request done"]
    assert len(done) == 2
    first = done[0]
    assert set(first) == REQUEST_FIELDS, set(first) ^ REQUEST_FIELDS
    assert first["id"] == answer.headers["x-request-id"]
    assert first["client_id"] == "run-7"
    assert (first["in"], first["out"], first["code"]) == (len(MARKER), 40, "ok")
    assert (first["prefill_worker"], first["decode_worker"]) == ("prefill-0", "decode-0")
    assert first["duration_ms"] >= first["ttft_ms"] > 0
    workers = {line["worker"] for line in lines if "worker" in line and "timestamp" in line}
    assert workers >= {"prefill-0", "decode-0"}, "workers write objects, too"


def test_refusals_are_logged_at_a_bounded_rate_and_all_counted() -> None:
    with serve("--mock") as server:
        begun = time.monotonic()
        for _ in range(100):
            server.call("POST", "/v1/completions", {"prompt": 1.5, "model": "mock"})
        seconds = int(time.monotonic() - begun) + 2
        page = server.get("/metrics").body.decode()
        unlogged = re.search(r"^dopd_refusals_unlogged_total\{[^}]*\} (\d+)$", page, re.M)
        counted = re.search(
            r'^dopd_rejections_total\{[^}]*reason="invalid_\w+"\} (\d+)$', page, re.M
        )
        assert unlogged and counted and int(counted[1]) == 100
        logged = 100 - int(unlogged[1])
        told = server.process.told
        wait_for(lambda: told().count("request refused") >= logged or None, "the log is written")
        assert told().count("request refused") == logged
    assert 0 < logged <= 20 * seconds


def test_there_are_statistics_while_there_is_traffic() -> None:
    with serve("--mock", "--log-format", "json") as server:
        server.complete([1, 2, 3], max_tokens=5)

        def stats() -> dict[str, Any] | None:
            lines = _objects(server.process.told())
            return next((line for line in lines if line.get("message") == "stats"), None)

        line = wait_for(stats, "a line of statistics")
        assert line["target"] == "dopd::stats"
        assert line["generation_tokens_per_s"] > 0
        assert re.fullmatch(r"decode=\d\.\d\d prefill=\d\.\d\d", line["kv_usage"])
