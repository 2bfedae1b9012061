"""Rows J2, J4, J7 and J8 of the matrix: what the machine does to us."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.binaries import binary
from tests.support.faults import scenes
from tests.support.faults.fleet import Fleet, fleet, num_fds
from tests.support.processes import Process, ended, wait_for
from tests.support.server import ANY_PORTS

YEAR_S = 365 * 86_400
UNSHARE = Path(shutil.which("unshare") or "unshare")


def test_j2_without_file_descriptors_streams_go_on_and_new_ones_come_back(tmp_path: Path) -> None:
    with fleet(tmp_path, prefill=1, decode=1, kind="rust") as one:
        pid = one.router.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        with one.ask(*scenes.mixed_asks(1, 10, 150, 200), clients=10) as traffic:
            scenes.when_busy(one.nodes["d0"], seats=5)
            # The books are looked at on a connection that is open already.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_fds(pid) + 4, hard))
            host, _, port = one.router.http.rpartition(":")
            with contextlib.ExitStack() as stack:
                for _ in range(40):
                    client = stack.enter_context(socket.socket())
                    client.connect((host, int(port)))
                traffic.finish().check(at_least=10)
        with one.ask(*scenes.mixed_asks(2, 4), clients=1) as traffic:
            traffic.finish().check(at_least=4)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        one.settled()


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static volatile long *offset_s;
__attribute__((constructor)) static void load(void) {
  const char *path = getenv("CLOCK_OFFSET_FILE");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *at = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (at != MAP_FAILED) offset_s = at;
}
int clock_gettime(clockid_t id, struct timespec *out) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, out);
  if (!code && offset_s && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
    out->tv_sec += *offset_s;
  return code;
}
"""


class WallClock:
    """The wall clock of processes that are started with `env`; it jumps when told to."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler for a clock that jumps")
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(CLOCK)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        self._file = folder / "offset"
        self._file.write_bytes(struct.pack("q", 0))
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._file)}

    def jump(self, offset_s: int) -> None:
        """From now on the clock is so far off."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", offset_s))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["rust", "python"])
def test_j4_no_jump_of_the_wall_clock_changes_anything(tmp_path: Path, kind: str) -> None:
    clock = WallClock(tmp_path)
    one = Fleet(tmp_path, env=clock.env)
    try:
        for name, role in (("p0", "prefill"), ("d0", "decode")):
            one.add(name, role, kind=kind, env=clock.env)
        one.begin()
        clock.jump(10 * YEAR_S)
        told = one.router.complete([1], max_tokens=1)["created"]
        assert told > time.time() + 9 * YEAR_S, "the router sees the clock jump"
        with one.traffic(seed=4, clients=8) as traffic:
            for offset_s in (3_600, -3_600, 10 * YEAR_S, 0):
                count = traffic.count()
                clock.jump(offset_s)
                wait_for(lambda n=count: traffic.count() > n + 16, "traffic flows")
            traffic.stop().check(at_least=64)
        for node in one.nodes.values():
            assert not [c for c in one.watch.changes(node.name) if c.state != "ready"]
        assert one.router.status()["replays_total"] == 0
        one.settled()
    finally:
        one.close()


def read_ready(path: Path) -> dict[str, str] | None:
    text = path.read_text() if path.exists() else ""
    return json.loads(text) if text.rstrip().endswith("}") else None


def is_ready(address: str) -> bool:
    with contextlib.closing(HTTPConnection(address, timeout=30)) as client:
        client.request("GET", "/ready")
        return client.getresponse().status == 200


def answers(address: str, count: int) -> None:
    """So many requests, one after the other, are answered right."""
    expected = mock_model.text(mock_model.answer([1, 2], 4))
    body = json.dumps({"model": "mock", "prompt": [1, 2], "max_tokens": 4, "temperature": 0})
    with contextlib.closing(HTTPConnection(address, timeout=30)) as client:
        for _ in range(count):
            client.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = client.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["choices"][0]["text"] == expected


def test_j7_a_machine_that_is_busy_with_other_things_ejects_nobody(tmp_path: Path) -> None:
    noise = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        with fleet(tmp_path, prefill=1, decode=1, kind="rust") as one:
            with one.traffic(seed=7, clients=4) as traffic:
                wait_for(lambda: traffic.count() > 60, "traffic flows", 60)
                traffic.stop().check(at_least=60)
            for node in one.nodes.values():
                changes = one.watch.changes(node.name)
                assert [c.state for c in changes if c.state != "ready"] == []
            assert one.router.status()["replays_total"] == 0
            one.settled()
    finally:
        for process in noise:
            process.kill()
            process.wait()


READ_ONLY = """
mount --make-rprivate / && mount --rbind / $1/root && mount -o remount,ro,bind $1/root || exit 77
test -z "$2" || mount --bind $1/tmp $1/root/tmp || exit 77
shift 2; exec chroot $ROOT "$@"
"""


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder for `in_read_only`, which anybody may enter, with the binaries in it."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root, unshare and setpriv for a root that cannot be written")
    # Not below tmp_path: that is closed to other users.
    with tempfile.TemporaryDirectory(prefix="dopd-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("root", "tmp"):
            (folder / part).mkdir()
        (folder / "tmp").chmod(0o1777)
        for program in ("dopd-router", "dopd-mock"):
            shutil.copy(binary(program), folder / "tmp" / program)
        yield folder


def in_read_only(folder: Path, *words: str, has_tmp: bool = True) -> list[str]:
    """A command as nobody, without HOME, on a root of which only /tmp can be written."""
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    # The shell's own variables go with `env -i`.
    command = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", *as_nobody, *words]
    script = READ_ONLY.replace("$ROOT", f"{folder}/root")
    inside = ["bash", "-c", script, "bash", str(folder), "tmp" if has_tmp else "", *command]
    return ["unshare", "--mount", *inside]


def test_j8_a_root_that_cannot_be_written_and_no_home_are_enough(read_only: Path) -> None:
    (read_only / "tmp" / "token").write_text("token-of-the-tests-0123456789\n")
    (read_only / "tmp" / "token").chmod(0o600)
    os.chown(read_only / "tmp" / "token", 65534, 65534)
    token = ("--join-token-file", "/tmp/token")
    ready = read_only / "tmp" / "ready.json"
    words = ("/tmp/dopd-router", "router", "--mock", *ANY_PORTS, "--ready-file", "/tmp/ready.json")
    router = Process(read_only / "r", *in_read_only(read_only, *words, *token)[1:], program=UNSHARE)
    with ended(router):
        found = router.wait_until(lambda: read_ready(ready), "the router is ready", 30)
        words = ("/tmp/dopd-mock", "--mock", "--role", "mixed", "--join", found["workers"])
        command = in_read_only(read_only, *words, *token)
        with ended(Process(read_only / "w", *command[1:], program=UNSHARE)):
            wait_for(lambda: is_ready(found["http"]), "a worker is attached")
            answers(found["http"], 5)
            assert Path(f"/proc/{router.pid}/status").read_text().count("65534") > 0
        assert router.stop(signal.SIGTERM) == 0


def test_j8_what_cannot_be_written_is_named(read_only: Path) -> None:
    os.chmod(read_only / "root", 0o755)
    shutil.copy(read_only / "tmp" / "dopd-router", read_only / "dopd-router")
    words = (f"{read_only}/dopd-router", "router", "--mock", *ANY_PORTS)
    done = subprocess.run(
        in_read_only(read_only, *words, has_tmp=False),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "join token" in done.stderr
    assert "Read-only file system" in done.stderr
