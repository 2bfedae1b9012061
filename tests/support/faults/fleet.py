"""A fleet to break: a router and workers as processes, each reached through fault proxies.

Workers join through a proxy (`Node.join`), and peers reach the data link of a Python worker through
another (`Node.data`). `settled` is the end of every test: all workers back, every page free, no
request, no slot, no descriptor left over.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.binaries import binary
from tests.support.faults.proxy import Proxy
from tests.support.faults.traffic import Ask, Traffic, asks
from tests.support.faults.watch import GONE, Watch
from tests.support.processes import Process, ended, wait_for
from tests.support.server import ANY_PORTS, Server, serve

# Steps of a GPU: an instant answer ends before its pages could move.
TIMINGS = "h100-8b"
LISTEN = "0A"
# Besides its data links, what a process may open for a moment: a log file, an accept under way.
SPARE_FDS = 4
# No prompt is computed where it is decoded, and no page of it is there already.
ALL_TRAVELS = '[policy]\nsteal = "never"\nprefix_cache = false\n'


def all_travels(folder: Path) -> tuple[str, str]:
    """Words for the router of tests that need the pages of every prompt on the link."""
    config = folder / "all_travels.toml"
    config.write_text(ALL_TRAVELS)
    return ("--config", str(config))


def num_fds(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def num_tasks(pid: int) -> int:
    """Threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def listening(pid: int) -> list[str]:
    """Addresses of a process's own listening TCP sockets on IPv4."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            name = os.readlink(entry)
            if name.startswith("socket:["):
                inodes.add(name[len("socket:[") : -1])
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTEN and fields[9] in inodes:
            host, port = fields[1].split(":")
            number = bytes.fromhex(host)[::-1]
            found.append(f"{'.'.join(map(str, number))}:{int(port, 16)}")
    return found


class Node:
    """One worker, over all its lives. `join`, `data`: proxies to the router and to its pages."""

    def __init__(
        self,
        fleet: Fleet,
        name: str,
        role: str,
        kind: str,
        words: tuple[str, ...],
        env: dict[str, str] | None,
        *,
        is_direct: bool = False,
    ) -> None:
        self.fleet = fleet
        self.name = name
        self.role = role
        self.kind = kind
        self.words = words
        self.env = env
        self.join = Proxy(fleet.router.workers)
        self.is_direct = is_direct
        self.data = Proxy() if kind == "python" and not is_direct else None
        self._process: Process | None = None
        self._stack = contextlib.ExitStack()
        self._lives = itertools.count(1)

    @property
    def process(self) -> Process:
        """Its life now."""
        assert self._process is not None, f"{self.name} is not started"
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.popen.poll() is None

    def start(self) -> None:
        """Begin a life, without waiting for it."""
        fleet = self.fleet
        words = ["--mock", "--role", self.role, "--name", self.name, "--exit-on-stdin-eof"]
        join = fleet.router.workers if self.is_direct else self.join.address
        words += ["--join", join, "--join-token-file", str(fleet.token_file)]
        if "--mock-timings" not in self.words and "--step-ms" not in self.words:
            words += ["--mock-timings", TIMINGS]
        if self.data is not None:
            # Peers on one machine would take shm, which no proxy can stand in.
            words += ["--transports", "tcp", "--data-advertise", self.data.address]
        folder = fleet.folder / f"{self.name}-{next(self._lives)}"
        if self.kind == "rust":
            one = Process(folder, *words, *self.words, env=self.env, program=binary("dopd-mock"))
        else:
            program = Path(sys.executable)
            one = Process(
                folder, "-m", "dopd.worker", *words, *self.words, env=self.env, program=program
            )
        self._process = self._stack.enter_context(ended(one))

    def find_data_address(self) -> None:
        """Point the proxy of the data link to where this life listens."""
        if self.data is None:
            return
        process = self.process
        found = process.wait_until(lambda: listening(process.pid) or None, "it listens", 30)
        self.data.upstream = found[0]

    def kill(self) -> float:
        """SIGKILL; returns when (monotonic)."""
        return self.signal(signal.SIGKILL)

    def signal(self, which: signal.Signals) -> float:
        """Send a signal; returns when (monotonic)."""
        at_s = time.monotonic()
        os.kill(self.pid, which)
        return at_s

    def restart(self) -> None:
        """A new life after the last one ended."""
        self.process.popen.wait(30)
        self.start()
        self.find_data_address()

    def heal(self) -> None:
        """Undo every fault that was put on it."""
        self.join.release()
        if self.data is not None:
            self.data.release()
        if self.is_running:
            self.signal(signal.SIGCONT)
        else:
            self.restart()

    def status(self) -> dict[str, Any] | None:
        """What the router says of it; None if it is not attached."""
        for worker in self.fleet.router.status()["workers"]:
            if worker["id"] == self.name:
                found: dict[str, Any] = worker
                return found
        return None

    def close(self) -> None:
        """End it, and its proxies."""
        if self.is_running:
            self.signal(signal.SIGCONT)
        self._stack.close()
        self.join.close()
        if self.data is not None:
            self.data.close()


class Fleet:
    """Use `fleet(...)`."""

    def __init__(self, folder: Path, *router_words: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._env = env
        self.token_file = folder / "token"
        self.token_file.touch(0o600)
        self.token_file.write_text(secrets.token_hex(32))
        self.nodes: dict[str, Node] = {}
        self._router_words = router_words
        self._stack = contextlib.ExitStack()
        self.router = self._start_router()
        self.watch = Watch(lambda: self.router.admin)
        self._base: dict[int, int] = {}
        self._names = itertools.count(1)

    def _start_router(self, *ports: str) -> Server:
        words = ("--mock", "--join-token-file", str(self.token_file), *self._router_words)
        server = serve(*words, command="router", env=self._env, ports=ports or ANY_PORTS)
        return self._stack.enter_context(server)

    def restart_router(self) -> None:
        """A new life of the router, on the ports of the last one, which has ended."""
        old = self.router
        old.process.popen.wait(30)
        self._stack.close()
        ports: list[str] = []
        for word, address in (
            ("--port", old.http),
            ("--grpc-port", old.grpc),
            ("--worker-port", old.workers),
            ("--metrics-port", old.admin),
        ):
            ports += [word, address.rpartition(":")[2]]
        self.router = self._start_router(*ports)

    def forget(self) -> None:
        """Workers and routers as if nothing had ever gone wrong: a new router has no grudges.

        Its breakers would else keep a test from the faults that it is about.
        """
        self.router.process.kill()
        self.restart_router()
        self.begin()

    def add(
        self,
        name: str,
        role: str,
        *words: str,
        kind: str = "python",
        env: dict[str, str] | None = None,
        is_direct: bool = False,
    ) -> Node:
        """A new worker, started and not waited for; see `begin`.

        is_direct: no proxy stands anywhere; Python workers take shm for pages.
        """
        node = self.nodes[name] = Node(self, name, role, kind, words, env, is_direct=is_direct)
        node.start()
        return node

    def replace(self, node: Node) -> Node:
        """Another worker in place of one, under another name.

        The router remembers how a name behaved and gives one that fails often no work for a while;
        a scene that is played again and again wants a worker without a past.
        """
        del self.nodes[node.name]
        node.close()
        name = f"{node.role[0]}-{next(self._names)}"
        fresh = self.add(
            name, node.role, *node.words, kind=node.kind, env=node.env, is_direct=node.is_direct
        )
        self.begin()
        return fresh

    def begin(self) -> None:
        """Wait for all workers, and note what a fleet at rest has open."""
        for node in self.nodes.values():
            node.find_data_address()
        self._wait_ready()
        self._base.clear()

    def traffic(self, *, seed: int = 0, clients: int = 8, **sizes: int) -> Traffic:
        """Checked traffic over both fronts."""
        return Traffic(self.router.http, self.router.grpc, asks(seed, **sizes), clients=clients)

    def ask(self, *wanted: Ask, clients: int = 8) -> Traffic:
        """Checked traffic of these requests."""
        return Traffic(self.router.http, self.router.grpc, iter(wanted), clients=clients)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        text = self.router.get("/metrics", address=self.router.admin).body.decode()
        rows = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows)

    def settled(self) -> dict[str, Any]:
        """End of a test: faults undone, all workers back, nothing held, books balanced all along.

        Returns the status of the fleet at rest.
        """
        for node in self.nodes.values():
            node.heal()
        self._wait_ready()
        fleet = self.router.wait_idle()
        for worker in fleet["workers"]:
            pages = worker["pages"]
            assert pages["free"] + pages["cached"] == pages["total"], worker
        self.watch.check()
        self._check_fds()
        return fleet

    def _wait_ready(self) -> None:
        def look() -> bool:
            states = {w["id"]: w["state"] for w in self.router.status()["workers"]}
            return all(states.get(name, GONE) == "ready" for name in self.nodes)

        wait_for(look, "all workers are ready")

    def _check_fds(self) -> None:
        """Descriptors and threads are as many as in the first look at a fleet at rest.

        A data link is one descriptor at each end and two threads, and may stay up.
        """
        links = 2 * len(self.nodes)
        pids = [self.router.pid, *(node.pid for node in self.nodes.values())]
        for pid in pids:
            limit = self._base.setdefault(pid, num_fds(pid)) + links + SPARE_FDS
            wait_for(
                lambda p=pid, m=limit: num_fds(p) <= m,  # type: ignore[misc]
                f"descriptors of {pid} are at most {limit}",
            )

    def close(self) -> None:
        """End everything."""
        self.watch.close()
        for node in self.nodes.values():
            node.close()
        self._stack.close()


@contextlib.contextmanager
def fleet(
    folder: Path,
    *router_words: str,
    prefill: int = 2,
    decode: int = 2,
    kind: str = "python",
    is_direct: bool = False,
) -> Iterator[Fleet]:
    """A running fleet of workers `p0`, `p1`, ... and `d0`, `d1`, ..."""
    one = Fleet(folder, *router_words)
    try:
        for role, count in (("prefill", prefill), ("decode", decode)):
            for k in range(count):
                one.add(f"{role[0]}{k}", role, kind=kind, is_direct=is_direct)
        one.begin()
        yield one
    finally:
        one.close()
