"""Start and end: banner, ready file, Ctrl-C, ports in use, workers that die or do not fit."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.processes import Process, ended, is_alive, run, wait_for
from tests.support.server import Server, serve


@pytest.fixture
def server() -> Iterator[Server]:
    with serve("--mock") as found:
        yield found


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def test_ctrl_c_leaves_nothing(server: Server) -> None:
    before = shared_memory()
    pids = [worker["pid"] for worker in server.status()["workers"]]
    os.killpg(server.pid, signal.SIGINT)
    assert server.process.popen.wait(30) == 0
    server.process.assert_nothing_left()
    assert not any(map(is_alive, pids))
    assert shared_memory() <= before


def test_sigterm_ends_it_as_well(server: Server) -> None:
    assert server.process.stop(signal.SIGTERM) == 0


def test_workers_end_with_a_router_that_was_killed(server: Server) -> None:
    pids = [worker["pid"] for worker in server.status()["workers"]]
    os.kill(server.pid, signal.SIGKILL)
    server.process.popen.wait(30)
    wait_for(lambda: not any(map(is_alive, pids)), "workers end when the router is gone")


def test_banner_tells_url_workers_metrics_and_a_curl_line(server: Server) -> None:
    banner = server.banner()
    assert server.url in banner
    assert server.admin in banner
    assert "curl" in banner
    for worker in server.status()["workers"]:
        assert str(worker["pid"]) in banner
        assert worker["role"] in banner


def test_a_killed_worker_is_restarted_and_serves(server: Server) -> None:
    victim = server.status()["workers"][0]
    os.kill(victim["pid"], signal.SIGKILL)

    def replaced() -> bool:
        workers = server.status()["workers"]
        return len(workers) == 2 and victim["pid"] not in [worker["pid"] for worker in workers]

    wait_for(replaced, "another worker in its place")
    expected = mock_model.text(mock_model.answer([1, 2], 8))
    assert server.complete([1, 2], max_tokens=8)["choices"][0]["text"] == expected


@pytest.mark.parametrize("flag", ["--port", "--grpc-port", "--worker-port", "--metrics-port"])
def test_a_port_in_use_is_named(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--port", "--grpc-port", "--worker-port", "--metrics-port"]
        words = [word for f in flags for word in (f, port if f == flag else "0")]
        done = run("serve", "--mock", *words)
    assert done.returncode == 2
    assert port in done.stderr
    assert f"process {os.getpid()} (" in done.stderr, "who has it"
    assert flag in done.stderr


def test_a_wrong_join_token_is_refused(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong\n")
    token.chmod(0o600)
    words = ("worker", "--mock", "--role", "mixed", "--join", server.workers)
    done = run(*words, "--join-token-file", token)
    assert done.returncode == 2, done.stderr
    assert "token" in done.stderr
    assert len(server.status()["workers"]) == 2


@pytest.mark.parametrize("difference", [("--page-size", "32")])
def test_a_worker_that_does_not_fit_is_refused_naming_both(
    server: Server, tmp_path: Path, difference: tuple[str, str]
) -> None:
    assert server.join_token_file
    words = ("worker", "--mock", "--role", "decode", "--join", server.workers, *difference)
    done = run(*words, "--join-token-file", server.join_token_file)
    assert done.returncode == 2, done.stderr
    assert "page_size" in done.stderr or "page size" in done.stderr
    assert "32" in done.stderr
    assert "16" in done.stderr


def test_a_worker_may_join_and_leave(server: Server, tmp_path: Path) -> None:
    assert server.join_token_file
    words = ("worker", "--mock", "--role", "mixed", "--join", server.workers, "--name", "guest")
    with ended(Process(tmp_path, *words, "--join-token-file", server.join_token_file)) as guest:
        wait_for(lambda: len(server.status()["workers"]) == 3, "the worker is attached")
        assert guest.stop(signal.SIGTERM) == 0
    wait_for(lambda: len(server.status()["workers"]) == 2, "the worker is gone")


def test_one_mixed_worker_is_enough() -> None:
    with serve("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1") as server:
        [worker] = server.status()["workers"]
        assert worker["role"] == "mixed"
        assert server.get("/ready").status == 200
