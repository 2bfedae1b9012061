"""Finding commands, help, errors and exit codes."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys

import pytest
from rich.console import Console

from dopd.cli import app, console, http, status
from tests.support.snapshots import assert_snapshot


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--help"]) == console.OK
    assert_snapshot("help", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["status", "chat", "bench", "version"])
def test_help_of_a_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        app.run([command, "--help"])
    assert caught.value.code == console.OK
    # Python 3.13 writes options another way than 3.11.
    text = capsys.readouterr().out
    assert text.startswith(f"usage: dopd {command} ")
    if sys.version_info < (3, 13):
        assert_snapshot(f"help_{command}", text)


def test_help_of_a_command_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help", "chat"], ["chat", "--help"]):
        with pytest.raises(SystemExit) as caught:
            app.run(words)
        assert caught.value.code == console.OK
    shown = capsys.readouterr().out
    half = len(shown) // 2
    assert shown[:half] == shown[half:]
    assert app.run(["help", "nope"]) == console.USAGE


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["status", "--jsn"], "--json"),
        (["chat", "--tempreature=1"], "--temperature"),
        (["bench", "--rate", "much"], "dopd bench --help"),
        (["complete"], "dopd complete --help"),
        (["completion", "tcsh"], "dopd completion --help"),
    ],
)
def test_a_wrong_flag_gets_a_suggestion(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        app.run(words)
    assert caught.value.code == console.USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(f"  fix: {fix}\n")


def cpu_s(*words: str) -> float:
    """Processor time of a command, its least of five runs: a busy machine has no part in it."""

    def total_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def once() -> float:
        before = total_s()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return total_s() - before

    return min(once() for _ in range(5))


def test_help_takes_less_than_150_ms() -> None:
    # Or little against a bare interpreter, where that is slow.
    assert cpu_s("-m", "dopd", "--help") < max(0.150, 4 * cpu_s("-c", ""))


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["statsu"]) == console.USAGE
    assert capsys.readouterr().err == "error: no command 'statsu'\n  fix: dopd status\n"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:y", "http://:80"])
def test_a_bad_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(console.CommandError) as caught:
        http.parse_url(url)
    assert caught.value.code == console.USAGE


def test_host_and_port_alone_are_a_url() -> None:
    assert http.parse_url("localhost:9").port == 9


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"no"}}', "no"),
        (b"<html>", "<html>"),
        (b"", "no message"),
        (b"[]", "[]"),
    ],
)
def test_the_message_of_an_error_is_found(body: bytes, message: str) -> None:
    assert http.error_message(body) == message


def test_status_for_people() -> None:
    pages = {"total": 10, "free": 7, "owned": 2, "cached": 1, "fenced": 0}
    worker = {
        "id": "prefill-0",
        "pid": 42,
        "role": "prefill",
        "state": "ready",
        "address": "127.0.0.1:4000",
        "running": 1,
        "seats": 2,
        "prefill_tokens_queued": 512,
        "pages": pages,
    }
    fleet = {
        "model": "mock",
        "version": "0.1.0",
        "uptime_s": 3725,
        "workers": [worker],
        "requests_waiting": 1,
        "tokens_waiting": 9,
        "sequences_running": 2,
        "handoffs_running": 0,
        "handoffs_total": 4,
        "replays_total": 0,
    }
    assert_snapshot("status", status.render(fleet) + "\n")
    assert "no worker is attached" in status.render(fleet | {"workers": []})


def test_status_names_the_ways_between_workers_and_not_too_many() -> None:
    def worker(name: str, *links: tuple[str, str, int]) -> dict[str, object]:
        told = [{"peer": p, "transport": t, "bytes_per_s": rate} for p, t, rate in links]
        return {"id": name, "links": told}

    two = [worker("p0", ("d0", "cuda_ipc", 312_000_000_000), ("d1", "tcp", 0)),
           worker("p1", ("d0", "shm", 740_000_000)), worker("d0")]  # fmt: skip
    assert status.ways({"workers": two}) == (
        "links: p0 -> d0 over cuda_ipc (312.0 GB/s), p0 -> d1 over tcp, "
        "p1 -> d0 over shm (740 MB/s)"
    )
    many = [worker("p", *[(f"d{k}", "tcp", 0) for k in range(20)])]
    assert status.ways({"workers": many}).endswith("p -> d7 over tcp, and 12 more")
    assert status.ways({"workers": [worker("d0"), {"id": "older"}]}) == ""


DOPD = [sys.executable, "-m", "dopd"]


@pytest.mark.parametrize("redirected", [">&-", "<&-", "2>&-"])
def test_a_closed_stream_is_an_empty_one(redirected: str) -> None:
    line = f"'{sys.executable}' -m dopd version {redirected}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (console.OK, "")


def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*DOPD, "version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == console.FAILED
    assert done.stderr == (
        "error: the answer cannot be written to stdout: no space left on device\n"
    )


def test_what_an_encoding_lacks_is_escaped() -> None:
    code = "from dopd.cli import console as c; c.set_up_streams(); c.say('\\xe9\\ud800')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"\\xe9\\ud800\n"


@pytest.mark.parametrize(
    ("width", "last"), [(120, "pid"), (80, "pages in use"), (58, "pages in use")]
)
def test_status_leaves_columns_out_rather_than_cutting_them(width: int, last: str) -> None:
    worker = {"id": "prefill-0", "pid": 12345, "role": "prefill", "state": "ready", "seats": 0}
    worker |= {"running": 0, "prefill_tokens_queued": 0, "pages": {"free": 9, "total": 65536}}
    totals = ("requests_waiting", "tokens_waiting", "sequences_running", "handoffs_running")
    totals += ("handoffs_total", "replays_total")
    found = {"workers": [worker | {"device": "mock"}]} | dict.fromkeys(totals, 0)
    terminal = Console(width=width, file=io.StringIO())
    terminal.print(status.draw(found, terminal))
    lines = terminal.file.getvalue().splitlines()
    assert lines[2].rstrip().endswith(last)
    assert "prefill-0" in lines[4]
    assert "…" not in "".join(lines)
