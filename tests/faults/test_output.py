"""Rows J5 and J9 of the matrix: output that nobody reads, a port that is taken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.faults.test_host import answers, read_ready
from tests.support.processes import DOPD, run, wait_for
from tests.support.server import ANY_PORTS


@pytest.mark.parametrize("output", ["blocked", "closed"])
def test_j5_output_that_nobody_reads_holds_up_nothing(tmp_path: Path, output: str) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4_096)
    ready = tmp_path / "ready.json"
    words = ["serve", "--mock", *ANY_PORTS, "--ready-file", str(ready), "--log-level", "debug"]
    process = subprocess.Popen(
        [*DOPD, *words], stdin=subprocess.DEVNULL, stdout=write, stderr=write
    )
    os.close(write)
    try:
        os.set_blocking(read, False)

        def look() -> dict[str, str] | None:
            """Read what is said until the server is ready, and no more after that."""
            with contextlib.suppress(BlockingIOError):
                while os.read(read, 1 << 16):
                    pass
            return read_ready(ready)

        address = wait_for(look, "the server is ready")["http"]
        if output == "closed":
            os.close(read)
            read = -1
        # Each leaves some lines in the log: many times what the pipe holds.
        answers(address, 300)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if read >= 0:
            os.close(read)


def test_j9_a_port_in_use_is_the_users_to_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = ("--grpc-port", "0", "--worker-port", "0", "--metrics-port", "0")
        done = run("serve", "--mock", "--port", port, *ports)
    assert port in done.stderr
    assert str(os.getpid()) in done.stderr, "who has it"
    assert done.returncode == 2
