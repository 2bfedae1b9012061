"""Names, types and labels on the metrics page are an interface: dashboards stand on them."""

from __future__ import annotations

import re
import subprocess

from tests.support.exposition import parse
from tests.support.promtool import promtool
from tests.support.server import Server, serve
from tests.support.snapshots import assert_snapshot


def test_the_names_are_those_that_were_promised() -> None:
    # A server of its own: a family without a row is not on the page.
    with serve("--mock") as server:
        server.complete([1, 2, 3], max_tokens=2)
        page = server.get("/metrics").body.decode()
    assert_snapshot("metrics", "\n".join(sorted(re.findall(r"^# TYPE (.+)$", page, re.M))) + "\n")


def test_both_listeners_show_the_same_page(mock: Server) -> None:
    def names(address: str) -> list[str]:
        page = mock.get("/metrics", address=address).body.decode()
        return re.findall(r"^# TYPE (.+)$", page, re.M)

    assert names(mock.http) == names(mock.admin)


def test_pages_add_up_for_every_worker(mock: Server) -> None:
    mock.wait_idle()
    for worker in mock.status()["workers"]:
        pages = worker["pages"]
        used = pages["free"] + pages["owned"] + pages["cached"] + pages["fenced"]
        assert used == pages["total"]


def test_the_page_is_well_formed(mock: Server) -> None:
    mock.complete([1, 2, 3], max_tokens=20)
    families = parse(mock.get("/metrics").body.decode())
    assert families["dopd_time_to_first_token_seconds"].kind == "histogram"
    openmetrics = mock.call("GET", "/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


def test_the_parts_of_a_request_add_up(mock: Server) -> None:
    def sums() -> dict[str, float]:
        families = parse(mock.get("/metrics").body.decode())
        return {
            name: sum(value for (row, _), value in family.samples.items() if row == f"{name}_sum")
            for name, family in families.items()
            if family.kind == "histogram"
        }

    before = sums()
    for _ in range(4):
        mock.complete([1, 2, 3], max_tokens=50)
    grown = {name: value - before[name] for name, value in sums().items()}
    parts = sum(
        grown[f"dopd_request_{part}_seconds"] for part in ("queue", "prefill", "transfer", "decode")
    )
    whole = grown["dopd_request_duration_seconds"]
    assert 0 < parts <= whole
    # What is left is the way of the end: the last token's report to the end of the request.
    assert parts >= whole / 2, grown
    waited = grown["dopd_request_queue_seconds"] + grown["dopd_request_prefill_seconds"]
    assert abs(waited - grown["dopd_time_to_first_token_seconds"]) < 1e-6 * 4


# What vLLM's own dashboard asks for (examples/observability/prometheus_grafana/grafana.json), and
# the gauges of the inference extension's endpoint picker.
VLLM_BOARD = {
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_success_total": "counter",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_max_num_generation_tokens": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_params_n": "histogram",
    "vllm:request_params_max_tokens": "histogram",
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:cache_config_info": "gauge",
}


def test_boards_and_pickers_for_vllm_find_what_they_ask_for() -> None:
    with serve("--mock", "--metrics-compat", "vllm") as server:
        server.complete([1, 2, 3], max_tokens=20)
        events = server.events("/v1/completions", {"prompt": [4], "max_tokens": 70})
        next(events)
        live = parse(server.get("/metrics").body.decode())
        for _ in events:
            pass
        families = parse(server.get("/metrics").body.decode())
    running = ("vllm:num_requests_running", (("engine", "0"), ("model_name", "mock")))
    assert running in live["vllm:num_requests_running"].samples
    config = dict(next(iter(families["vllm:cache_config_info"].samples))[1])
    assert config["block_size"] == "16" and int(config["num_gpu_blocks"]) > 0
    for name, kind in VLLM_BOARD.items():
        family = families[name]
        assert family.kind == kind, name
        assert {("engine", "0"), ("model_name", "mock")} <= set(next(iter(family.samples))[1])
        if kind != "gauge":
            assert max(family.samples.values()) > 0, f"{name} is empty after traffic"
    reasons = {
        dict(labels)["finished_reason"]
        for _, labels in families["vllm:request_success_total"].samples
    }
    assert reasons == {"stop", "length", "abort", "error"}


def test_promtool_finds_nothing(mock: Server) -> None:
    mock.complete([1, 2, 3], max_tokens=2)
    page = mock.get("/metrics").body
    checked = subprocess.run(
        [promtool(), "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr.decode()
