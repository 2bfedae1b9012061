"""Local workers that end, hang or cannot start, and what is told of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.processes import DOPD, run, wait_for
from tests.support.server import ANY_PORTS, Server, serve


def worker(folder: Path, script: str) -> Path:
    """A worker command: `script` before the real worker."""
    path = folder / "worker.sh"
    path.write_text(f'#!/bin/sh\n{script}\nexec {" ".join(DOPD)} worker "$@"\n')
    path.chmod(0o755)
    return path


def config(folder: Path, *cluster: str) -> Path:
    path = folder / "dopd.toml"
    path.write_text("\n".join(["[cluster]", *cluster]))
    return path


def told(server: Server, text: str) -> bool:
    return text in server.process.log.read_text()


def test_a_crash_loop_is_given_up_with_its_cause_and_the_last_one_ends_serve(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "broken"
    command = worker(tmp_path, f"[ -e {mark} ] && echo 'no such device' >&2 && exit 7")
    words = ("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1")
    with serve(*words, "--worker-command", command) as server:
        mark.touch()
        [only] = server.status()["workers"]
        os.kill(only["pid"], signal.SIGKILL)
        assert server.process.popen.wait(50) == 1
        log = server.process.log.read_text()
        server.process.assert_nothing_left()
    assert "signal 9: killed from outside" in log
    assert "died 5 times in 600 s, last with exit code 7; it is not started again" in log
    assert "it was the last local worker" in log
    assert "no such device" in log.splitlines()[-1], "its last words"


def test_a_worker_that_hangs_at_start_ends_the_start(tmp_path: Path) -> None:
    command = worker(tmp_path, "exec sleep 1000")
    path = config(tmp_path, "start_timeout_ms = 1000")
    words = ("serve", "--mock", *ANY_PORTS, "--config", path, "--worker-command", command)
    done = run(*words)
    assert done.returncode == 1
    assert "did not attach within 1 s (cluster.start_timeout_ms)" in done.stderr
    assert "decode-0" in done.stderr


def test_a_worker_that_hangs_later_is_killed_and_started_again(tmp_path: Path) -> None:
    with serve("--mock", "--config", config(tmp_path, "hang_timeout_ms = 1500")) as server:
        victim = server.status()["workers"][0]
        os.kill(victim["pid"], signal.SIGSTOP)

        def replaced() -> bool:
            now = {worker["id"]: worker["pid"] for worker in server.status()["workers"]}
            return now.get(victim["id"], victim["pid"]) != victim["pid"]

        wait_for(replaced, "another process in its place")
        assert told(server, "for 1.5 s (cluster.hang_timeout_ms)")
        server.complete([1, 2, 3], max_tokens=4)


def test_sighup_starts_a_worker_that_was_given_up(tmp_path: Path) -> None:
    mark = tmp_path / "broken"
    command = worker(tmp_path, f"[ -e {mark} ] && exit 2")
    with serve("--mock", "--worker-command", command) as server:
        mark.touch()
        os.kill(server.status()["workers"][0]["pid"], signal.SIGKILL)
        wait_for(lambda: told(server, "cannot run (exit code 2)"), "it is given up")
        assert server.get("/ready").status == 200, "the other one serves"
        mark.unlink()
        server.process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: told(server, "rolling restart done"), "the roll is over", 60)
        assert len(server.status()["workers"]) == 2


def test_the_log_of_a_router_without_local_workers_takes_a_sighup() -> None:
    with serve("--mock", command="router") as server:
        server.process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: told(server, "no local workers to restart"), "it says so")
        assert server.get("/health").status == 200
