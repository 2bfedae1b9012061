"""What a person at a terminal sees: chat with Ctrl-C, the progress bar of bench."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import DOPD, wait_for
from tests.support.server import ANY_PORTS, Server, serve

CTRL_C, CTRL_D = b"\x03", b"\x04"


@pytest.fixture(scope="module")
def slow() -> Iterator[Server]:
    with serve("--mock", "--mock-timings", "h100-8b") as server:
        yield server


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        master, slave = pty.openpty()
        self._master = master
        os.set_blocking(master, False)
        self.process = subprocess.Popen(
            [*DOPD, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # CI sets NO_COLOR, which a terminal does not.
            env=os.environ | {"NO_COLOR": "", "TERM": "xterm", "COLUMNS": "100"} | (env or {}),
            start_new_session=True,
            # The terminal becomes the one that Ctrl-C belongs to.
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def look(self) -> str:
        """Everything shown so far."""
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self._master, 65_536):
                self.seen += data.decode(errors="replace")
        return self.seen

    def wait_for(self, pattern: str) -> None:
        """Wait until `pattern` is on the screen."""
        try:
            wait_for(lambda: re.search(pattern, self.look()), f"{pattern!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows {self.seen!r}") from None

    def ended(self) -> int:
        """The exit code, once it has ended."""
        return wait_for(
            lambda: self.process.poll() is not None and (self.process.returncode,),
            "the command ends",
        )[0]

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def test_ctrl_c_ends_the_answer_and_not_the_talk(slow: Server) -> None:
    terminal = Terminal("chat", "--url", slow.url, "--max-tokens", "100000")
    with contextlib.closing(terminal):
        terminal.wait_for(r"> $")
        terminal.type(b"hello\r")
        wait_for(lambda: slow.status()["sequences_running"] == 1, "the answer is being written")
        terminal.type(CTRL_C)
        terminal.wait_for(r"\(ended\)")
        slow.wait_idle()
        terminal.wait_for(r"> $")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0


def test_ctrl_c_at_the_prompt_drops_the_line_and_not_the_talk(slow: Server) -> None:
    terminal = Terminal("chat", "--url", slow.url)
    with contextlib.closing(terminal):
        terminal.wait_for(r"> $")
        terminal.type(b"half a li")
        terminal.wait_for(r"half a li$")
        terminal.type(CTRL_C)
        terminal.wait_for(r"half a li[^>]*> $")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.look()


def test_a_talk_has_commands_and_tells_its_speed(slow: Server, tmp_path: Path) -> None:
    terminal = Terminal("chat", "--url", slow.url, "--max-tokens", "5")
    file = tmp_path / "talk.json"
    with contextlib.closing(terminal):
        terminal.wait_for(r"> $")
        terminal.type(b"/sistem x\r")
        terminal.wait_for("no command /sistem; /help")
        terminal.type(b"/system be brief\r")
        terminal.wait_for("a new talk")
        terminal.type(b"hello\r")
        terminal.wait_for(r"5 tokens, [\d.]+ tokens/s, first after \d+ ms, cut at its longest")
        terminal.type(f"/save {file}\r".encode())
        terminal.wait_for("3 messages in")
        # The line before the last one, again, by the editor's history.
        terminal.type(b"\x1b[A\x1b[A\r")
        wait_for(lambda: terminal.look().count("first after") == 2, "hello is said again")
        terminal.type(b"/quit\r")
        assert terminal.ended() == 0
    roles = [message["role"] for message in json.loads(file.read_text())]
    assert roles == ["system", "user", "assistant"]


def test_status_is_redrawn_and_outlives_its_server() -> None:
    with serve("--mock") as server:
        terminal = Terminal("status", "--url", server.url, "--watch", "0.1")
        terminal.wait_for("prefill-0.*ready")
    with contextlib.closing(terminal):
        terminal.wait_for("no server at .*; looking again")
        terminal.type(CTRL_C)
        assert terminal.ended() == 130
        assert "Traceback" not in terminal.look()


def test_a_start_shows_one_line_and_the_banner() -> None:
    terminal = Terminal("serve", "--mock", *ANY_PORTS)
    with contextlib.closing(terminal):
        terminal.wait_for(r"Ctrl-C stops")
        seen = terminal.look()
        # What the line tells as well is left out.
        assert "attaching to" not in seen
        assert "keys        none asked for" in seen
        terminal.type(CTRL_C)
        assert terminal.ended() == 0


def test_no_color_is_honoured(slow: Server) -> None:
    terminal = Terminal("status", "--url", slow.url, env={"NO_COLOR": "1"})
    with contextlib.closing(terminal):
        assert terminal.ended() == 0
        assert "WORKER" in terminal.look()
        assert "\x1b" not in terminal.look()


def test_bench_shows_a_bar_and_its_report(slow: Server) -> None:
    words = ("--requests", "20", "--rate", "40", "--output-tokens", "3")
    terminal = Terminal("bench", "--url", slow.url, *words)
    with contextlib.closing(terminal):
        assert terminal.ended() == 0
        assert "20/20" in terminal.look()
        assert "TTFT" in terminal.look()


def test_ctrl_c_ends_a_load_with_a_report_of_what_was_measured(slow: Server) -> None:
    words = ("--duration", "600", "--rate", "40", "--output-tokens", "3")
    terminal = Terminal("bench", "--url", slow.url, *words)
    with contextlib.closing(terminal):
        terminal.wait_for(r"[1-9]\d*/\d+")
        terminal.type(CTRL_C)
        assert terminal.ended() == 130
        assert "requests completed" in terminal.look()
        assert "requests were sent" in terminal.look()
        assert "Traceback" not in terminal.look()
    slow.wait_idle()
