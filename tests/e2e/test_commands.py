"""status, chat, bench, replay and version against a running server."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.processes import DOPD, run
from tests.support.server import Server, serve

WORKER_FIELDS = {"id", "pid", "role", "state", "address", "running", "seats", "pages"}
PAGE_FIELDS = {"total", "free", "owned", "cached", "fenced"}


def test_status_json_has_every_worker(mock: Server) -> None:
    done = run("status", "--url", mock.url, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(worker["role"] for worker in found["workers"]) == ["decode", "prefill"]
    for worker in found["workers"]:
        assert worker.keys() >= WORKER_FIELDS
        assert worker["pages"].keys() == PAGE_FIELDS
        assert worker["state"] == "ready"
    assert found.keys() >= {"model", "version", "uptime_s"}


def test_status_is_a_table_for_people_on_both_listeners(mock: Server) -> None:
    for address in (mock.http, mock.admin):
        done = run("status", "--url", address)
        lines = done.stdout.splitlines()
        assert done.returncode == 0, done.stderr
        assert lines[0].startswith("model mock, dopd ")
        assert lines[2].split()[:4] == ["WORKER", "PID", "ROLE", "STATE"]
        assert len([line for line in lines if " ready " in line]) == 2


def test_chat_streams_the_answer_and_remembers(mock: Server) -> None:
    words = ("chat", "--url", mock.url, "--max-tokens", "8", "--temperature", "0")
    done = run(*words, stdin="hello\nand?\n")
    first = mock_model.text(
        mock_model.answer(mock_model.chat([{"role": "user", "content": "hello"}]), 8)
    )
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and?"},
    ]
    second = mock_model.text(mock_model.answer(mock_model.chat(talk), 8))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first}\n{second}\n"


def test_complete_streams_to_stdout_and_reads_stdin(mock: Server) -> None:
    words = ("complete", "--url", f"{mock.url}/v1", "--max-tokens", "8", "--temperature", "0")
    expected = mock_model.text(mock_model.answer(mock_model.encode("hello"), 8))
    done = run(*words, "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")
    assert run(*words, "-", stdin="hello").stdout == done.stdout
    assert run(*words, "--echo", "hello").stdout == f"hello{expected}\n"
    found = json.loads(run(*words, "--json", "hello").stdout)
    assert found["text"] == expected
    assert found["usage"]["completion_tokens"] == 8
    assert found["finish_reason"] == "length"
    assert found["ttft_ms"] > 0


def test_a_refused_request_ends_complete_with_the_servers_words(mock: Server) -> None:
    done = run("complete", "--url", mock.url, "--temperature", "-1", "x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server answered 400: ")
    assert "temperature" in done.stderr


def test_every_sampling_flag_reaches_the_server(mock: Server) -> None:
    flags = ("--top-p", "0.9", "--top-k", "4", "--min-p", "0.1", "--seed", "7", "--stop", "~")
    done = run("complete", "--url", mock.url, "--max-tokens", "4", *flags, "hello")
    assert done.returncode == 0, done.stderr


def test_status_is_told_again_and_again(mock: Server) -> None:
    words = [*DOPD, "status", "--url", mock.url, "--json", "--watch", "0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert [len(found["workers"]) for found in looks] == [2, 2, 2]


def test_bench_measures_and_writes(mock: Server, tmp_path: Path) -> None:
    words = ("--rate", "200", "--requests", "60", "--prompt-tokens", "40", "--output-tokens", "9")
    slo = ("--slo-ttft-ms", "30000", "--slo-tpot-ms", "30000")
    files = ("--json", tmp_path / "out.json", "--plot", tmp_path / "out.png")
    done = run("bench", "--url", mock.url, *words, *slo, *files)
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found.pop("requests")) == 60
    assert (found["sent"], found["completed"], found["failed"]) == (60, 60, 0)
    assert found["goodput"]["share"] == 1
    assert found["output_tokens"] == 60 * 9
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    mock.wait_idle()


def test_bench_follows_a_trace(mock: Server, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n5.0,10,3\n5.1,20,4\n5.2,30,5\n")
    done = run("bench", "--url", mock.url, "--trace", trace, "--json")
    found = json.loads(done.stdout)
    assert found["completed"] == 3
    assert found["output_tokens"] == 12


@pytest.mark.parametrize("words", [(), ("--chat",), ("--rate", "inf", "--concurrency", "2")])
def test_every_kind_of_request_is_answered_in_full(mock: Server, words: tuple[str, ...]) -> None:
    load = ("--requests", "6", "--rate", "100", "--output-tokens", "5", "--prompt-tokens", "7")
    done = run("bench", "--url", mock.url, *load, *words, "--json")
    found = json.loads(done.stdout)
    assert (found["completed"], found["errors"]) == (6, {})
    assert found["output_tokens"] == 30
    # No gap between tokens where each answer came in one piece.
    assert found["ttft_ms"]["mean"] > 0
    if "--chat" not in words:
        assert found["prompt_tokens"] == 42


def test_two_servers_get_the_same_load_in_turns(mock: Server, tmp_path: Path) -> None:
    plot, out = tmp_path / "both.svg", tmp_path / "both.json"
    load = ("--requests", "24", "--rate", "200", "--output-tokens", "4", "--rounds", "3")
    with serve("--mock", "--mock-timings", "h100-8b") as slow:
        words = ("bench", "--url", mock.url, "--compare", slow.url, *load)
        done = run(*words, "--plot", plot, "--json", out, "--slo-ttft-ms", "10000")
    assert done.returncode == 0, done.stderr
    assert f"{mock.http} over {slow.http}, the same load in 3 rounds" in done.stdout
    found = json.loads(out.read_text())
    for server in (mock, slow):
        assert found["servers"][server.http]["completed"] == 24
        assert len(found["requests"][server.http]) == 24
    # An instant mock beside the step times of a GPU.
    assert found["ratios"]["tpot_ms.p50"]["whole"] < 1
    assert found["ratios"]["goodput.requests_per_s"]["whole"] > 0
    assert plot.read_text().count("<svg") == 1


def test_bench_says_what_failed(mock: Server) -> None:
    done = run("bench", "--url", mock.url, "--requests", "3", "--model", "nope")
    assert done.returncode == 1
    assert "nope" in done.stderr


def test_failures_are_counted_by_code(mock: Server) -> None:
    words = ("--requests", "3", "--warmup", "0", "--rate", "100", "--model", "nope")
    done = run("bench", "--url", mock.url, *words, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["errors"]["404"]["count"] == 3
    assert "nope" in found["errors"]["404"]["example"]


def test_a_recorded_run_replays_to_the_same_decisions(tmp_path: Path) -> None:
    record = tmp_path / "events.log"
    with serve("--mock", "--record", record) as server:
        for length in (5, 50, 500):
            server.complete([1] * length, max_tokens=20)
        server.wait_idle()
    done = run("replay", record)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [("status",), ("chat",), ("bench",), ("complete", "x")])
def test_no_server_is_said_with_the_fix(words: tuple[str, ...]) -> None:
    done = run(*words, "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.splitlines()[0].startswith("error: no server at 127.0.0.1:9")
    assert "dopd serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_names_itself() -> None:
    found = json.loads(run("version", "--json").stdout)
    assert found["dopd"]
    assert found["python"]
