"""`/ready` and gRPC's health tell whether tokens flow, not whether somebody is attached."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.processes import wait_for
from tests.support.server import Server, serve

# The prompt of a canary: one token 1.
CANARY = "\x01"
# An interval whose proof, good for two of them, outlasts a call on a busy machine.
PROVEN_MS = 1_000


def config(folder: Path, interval_ms: int, *more: str) -> Path:
    path = folder / "dopd.toml"
    path.write_text("\n".join([f"[workers]\ncanary_interval_ms = {interval_ms}", *more]))
    return path


def is_serving(server: Server) -> bool:
    with grpc.insecure_channel(server.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def steps(server: Server) -> int:
    return sum(worker["steps"] for worker in server.status()["workers"])


def test_an_idle_router_asks_for_tokens_and_nobody_is_charged(tmp_path: Path) -> None:
    with serve("--mock", "--config", config(tmp_path, PROVEN_MS)) as server:
        assert server.get("/ready").json() == {"status": "ready"}
        before = steps(server)
        wait_for(lambda: steps(server) >= before + 4, "canaries make steps")
        assert server.get("/ready").status == 200
        assert is_serving(server)
        metrics = server.get("/metrics").body.decode().splitlines()
        totals = ("dopd_prompt_tokens_total", "dopd_generation_tokens_total", "dopd_requests_total")
        counted = [line for line in metrics if line.startswith(totals)]
        assert counted
        assert all(float(line.rsplit(" ", 1)[1]) == 0 for line in counted), counted
        assert "request done" not in server.process.log.read_text()


def test_workers_that_are_frozen_make_it_not_ready_until_they_wake(tmp_path: Path) -> None:
    with serve("--mock", "--config", config(tmp_path, 200)) as server:
        pids = [worker["pid"] for worker in server.status()["workers"]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: server.get("/ready").status == 503, "it is not ready")
        wait_for(lambda: not is_serving(server), "gRPC says so as well", 10)
        assert server.get("/health").status == 200
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: server.get("/ready").status == 200, "it is ready again")


def test_a_fleet_that_answers_nobody_is_not_ready_and_says_why(tmp_path: Path) -> None:
    words = ("--mixed", "1", "--prefill", "0", "--decode", "0")
    fault = f"--worker-arg=--mock-fault=raise={CANARY}"
    with serve("--mock", *words, fault, "--config", config(tmp_path, PROVEN_MS)) as server:
        answer = server.get("/ready")
        assert answer.status == 503
        told = answer.json()
        assert told["status"] == "starting"
        assert "the last canary failed" in told["message"]
        assert "mixed-0 ready" in told["message"], "the worker itself says that all is well"
        assert server.get("/ready", address=server.admin).json()["status"] == "starting"
        # Real traffic is proof as well.
        server.complete([7, 8], max_tokens=4)
        assert server.get("/ready").status == 200
        wait_for(lambda: server.get("/ready").status == 503, "the proof is old")
        assert server.get("/ready").json()["status"] == "no_tokens"


def test_without_canaries_an_attached_worker_is_enough(tmp_path: Path) -> None:
    with serve("--mock", "--config", config(tmp_path, 0)) as server:
        before = steps(server)
        time.sleep(0.3)
        assert steps(server) == before
        assert server.get("/ready").status == 200
