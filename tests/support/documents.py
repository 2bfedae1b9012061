"""Does what a document tells its reader to do, block after block, in a network of its own.

`python -m tests.support.documents FILE` is run by tests/docs inside a new network namespace, so
that every default port is free and nothing that runs here can be met by others. In it

- each ```console block is typed into bash, command by command: a line that starts with `$ `, and
  the lines that continue it. Lines of output are not compared;
- `dopd serve`, `router`, `worker` and `make serve` stay running until the document starts another
  server or ends; a document that begins with another command finds `dopd serve --mock` running;
- each ```python block is run as a program; a block under `<!-- file: NAME -->` is written to NAME;
- a block under `<!-- not run: REASON -->` is left out, and counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_TIMEOUT_S = 90.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
SERVERS = re.compile(r"^(?:\w+=\S+ )*(?:dopd (?:serve|router|worker)\b|make serve\b)")
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|file): (?P<word>[^>]*?) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40


class Failed(Exception):
    """A command of the document did not do what it promises."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a document."""

    language: str
    text: str
    mark: str | None
    word: str | None

    def commands(self) -> list[str]:
        """What is typed: `$ ` lines with those that continue them."""
        typed: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                typed.append(line[2:])
            elif typed and _goes_on(typed[-1]):
                typed[-1] += "\n" + line
        return typed


def _goes_on(command: str) -> bool:
    """Whether bash would ask for more: a backslash at the end, or an open quote."""
    asked = subprocess.run(["bash", "-nc", command], capture_output=True, text=True, check=False)
    return command.endswith("\\") or "unexpected EOF" in asked.stderr


def blocks(text: str) -> list[Block]:
    """All fenced blocks with a language."""
    return [
        Block(found["language"], found["text"], found["mark"], found["word"])
        for found in BLOCK.finditer(text)
    ]


@dataclass(slots=True)
class Reader:
    """Somebody at a terminal, who has read so far."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ran: int = 0

    def environment(self) -> dict[str, str]:
        """PATH with `dopd` first, as after `make build`."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "NO_COLOR": "1", "COLUMNS": "100"}

    def do(self, block: Block) -> None:
        """Do what a block says."""
        if block.mark == "not run":
            return
        if block.mark == "file":
            (self.folder / str(block.word)).write_text(block.text)
        elif block.language == "python":
            self._need_server()
            self._run([sys.executable, "-c", block.text], block.text)
        elif block.language == "console":
            for command in block.commands():
                self._type(command)
            self._settle()

    def _type(self, command: str) -> None:
        if SERVERS.match(command):
            self._start(command)
            return
        self._need_server()
        self._run(["bash", "-euo", "pipefail", "-c", command], command)

    def _run(self, words: list[str], shown: str) -> None:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        self.ran += 1
        if done.returncode != 0:
            told = f"{done.stdout}\n{done.stderr}".strip()
            raise Failed(f"exit code {done.returncode} of: {shown}\n{told}")

    def _start(self, command: str) -> None:
        command = re.sub(r"^make serve", "dopd serve smollm2", command).split("  #")[0]
        if not command.startswith("dopd worker"):
            self.close()
        log = (self.folder / "server.log").open("ab")
        shell = ["bash", "-c", f"exec env {command}"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(shell, cwd=self.folder, env=self.environment(), **quiet)
        self.running.append(process)
        self.ran += 1
        path = "/health" if command.startswith("dopd router") else "/ready"
        if not command.startswith("dopd worker"):
            self._wait(path)

    def _settle(self) -> None:
        """Workers that a block started have joined before the next block is read."""
        if len(self.running) > 1:
            self._wait("/ready")

    def _need_server(self) -> None:
        if not self.running:
            self._start("dopd serve --mock")
            self.ran -= 1

    def _wait(self, path: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._url(path), timeout=5):
                return
            if any(process.poll() is not None for process in self.running):
                break
            time.sleep(0.05)
        raise Failed(f"{path} did not answer:\n{(self.folder / 'server.log').read_text()}")

    def _url(self, path: str) -> str:
        found = re.search(r"http://([0-9.:]+)/v1", (self.folder / "server.log").read_text())
        return f"http://{found[1] if found else '127.0.0.1:8000'}{path}"

    def close(self) -> None:
        """End what runs, workers first."""
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
        (self.folder / "server.log").write_text("")


def loopback_up() -> None:
    """A new network namespace has a loopback that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, flags)


def prepare(folder: Path) -> None:
    """What a reader has: the command, and a model in either form."""
    from tests.support import smollm2, sources, tiny_model

    (folder / "bin").mkdir()
    shim = folder / "bin" / "dopd"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dopd "$@"\n')
    shim.chmod(0o755)
    os.environ["PYTHONPATH"] = f"{sources.REPO / 'python'}:{os.environ.get('PYTHONPATH', '')}"
    tiny_model.write(folder / "my-model")
    gguf = smollm2.gguf_path()
    if gguf is not None:
        (folder / "my-model.gguf").symlink_to(gguf)


def main(name: str) -> int:
    """Read the document `name`; 1 with the command that failed on stderr."""
    loopback_up()
    found = blocks(Path(name).read_text())
    with tempfile.TemporaryDirectory(prefix="dopd-docs-") as folder:
        reader = Reader(Path(folder))
        prepare(reader.folder)
        try:
            for block in found:
                reader.do(block)
        except (Failed, subprocess.TimeoutExpired) as problem:
            print(f"{name}: {problem}", file=sys.stderr)
            return 1
        finally:
            reader.close()
    left_out = sum(block.mark == "not run" for block in found)
    print(f"{name}: {reader.ran} commands run, {left_out} blocks left out")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
