"""Mock workers in Rust and in Python are interchangeable: every pair hands off to each other."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.binaries import binary
from tests.support.faults.fleet import all_travels
from tests.support.processes import Process, ended, wait_for
from tests.support.server import Server, serve

# Long enough for pages to move before an answer ends.
STEP_TIMES = ("--mock-timings", "h100-8b")
PAIRS = list(itertools.product(["python", "rust"], repeat=2))

# Canaries are handed off, too, and these tests count hand-offs.
NO_CANARY = {"DOPD_WORKERS__CANARY_INTERVAL_MS": "0"}


@contextlib.contextmanager
def worker(kind: str, role: str, server: Server, folder: Path) -> Iterator[Process]:
    """A mock worker of `kind`, attached to the router."""
    assert server.join_token_file
    words = ("--mock", "--role", role, "--join", server.workers, "--name", f"{kind}-{role}")
    words = (*words, "--join-token-file", server.join_token_file, *STEP_TIMES)
    program = binary("dopd-mock") if kind == "rust" else None
    command = words if program else ("worker", *words)
    with ended(Process(folder / role, *command, program=program)) as process:
        yield process


@pytest.mark.parametrize(("prefill", "decode"), PAIRS)
def test_a_pair_answers_as_the_model_and_hands_every_request_off(
    prefill: str, decode: str, tmp_path: Path
) -> None:
    prompts = [[n % 256 for n in range(length)] for length in (1, 16, 33, 500)]
    with (
        serve("--mock", *all_travels(tmp_path), command="router", env=NO_CANARY) as server,
        worker(prefill, "prefill", server, tmp_path),
        worker(decode, "decode", server, tmp_path),
    ):
        wait_for(lambda: len(server.status()["workers"]) == 2, "both workers are attached")
        for seed, prompt in enumerate(prompts):
            sampling = {"temperature": seed % 2, "seed": seed, "ignore_eos": True}
            found = server.complete(prompt, max_tokens=40, **sampling)
            expected = mock_model.answer(prompt, 40, **sampling)
            assert found["choices"][0]["text"] == mock_model.text(expected)
        fleet = server.wait_idle()
        assert fleet["handoffs_total"] == len(prompts)
        assert fleet["replays_total"] == 0
        geometry = {(w["pages"]["fenced"], w["pages"]["owned"]) for w in fleet["workers"]}
        assert geometry == {(0, 0)}


def test_choices_of_a_long_prompt_answer_as_if_each_were_alone(tmp_path: Path) -> None:
    """A Python worker computes the prompt once and ships shared pages, a Rust one four times."""
    prompt = [n % 256 for n in range(300)]
    for prefill, decode in (("python", "rust"), ("rust", "python")):
        folder = tmp_path / prefill
        with (
            serve("--mock", *all_travels(tmp_path), command="router", env=NO_CANARY) as server,
            worker(prefill, "prefill", server, folder),
            worker(decode, "decode", server, folder),
        ):
            wait_for(lambda: len(server.status()["workers"]) == 2, "both workers are attached")
            sampling = {"temperature": 1, "seed": 7, "ignore_eos": True}
            found = server.complete(prompt, max_tokens=20, n=4, **sampling)
            assert found["usage"]["prompt_tokens"] == len(prompt)
            for choice in found["choices"]:
                expected = mock_model.answer(prompt, 20, choice=choice["index"], **sampling)
                assert choice["text"] == mock_model.text(expected)
            assert server.wait_idle()["handoffs_total"] == 4


def test_logprobs_are_the_same_from_both(tmp_path: Path) -> None:
    content = []
    for kind in ("python", "rust"):
        with (
            serve("--mock", command="router", env=NO_CANARY) as server,
            worker(kind, "mixed", server, tmp_path / kind),
        ):
            wait_for(lambda: server.get("/ready").status == 200, "the worker is attached")
            body = {
                "model": "mock",
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 40,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": 4,
            }
            answer = server.call("POST", "/v1/chat/completions", body).json()
            content.append(answer["choices"][0]["logprobs"]["content"])
    assert content[0] == content[1]
