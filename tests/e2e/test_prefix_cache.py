"""The prefix cache from the outside: what is reused, by whom, and that no answer changes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dopd
from tests.support import mock_model
from tests.support.processes import wait_for
from tests.support.server import Server, serve

PAGE = 16
ONE_WORKER = ("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1")
KEYS = ("alice", "bob")


@pytest.fixture(scope="module")
def one() -> Iterator[Server]:
    with serve(*ONE_WORKER) as server:
        yield server


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


def cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0), (16, 0), (17, 16), (32, 16), (33, 32), (100, 96)]
)
def test_full_pages_before_the_last_token_are_reused(
    one: Server, length: int, expected: int
) -> None:
    tokens = prompt(length, length)
    answers = [one.complete(tokens, max_tokens=5) for _ in range(2)]
    assert [cached(answer) for answer in answers] == [0, expected]
    text = mock_model.text(mock_model.answer(tokens, 5))
    assert [answer["choices"][0]["text"] for answer in answers] == [text, text]


def test_an_answer_is_reused_by_the_next_turn(one: Server) -> None:
    tokens = prompt(1000, 20)
    answer = mock_model.answer(tokens, 40, ignore_eos=True)
    one.complete(tokens, max_tokens=40, ignore_eos=True)
    # The last token of an answer is not computed: 59 tokens are, on three full pages.
    follow_up = tokens + answer + prompt(1001, 30)
    assert cached(one.complete(follow_up, max_tokens=2)) == 48


def test_random_prompts_with_equal_beginnings_answer_as_without(one: Server) -> None:
    stems = [prompt(2000 + number, 70) for number in range(4)]
    rng = random.Random(5)
    asks = [
        rng.choice(stems)[: rng.randrange(70)] + prompt(3000 + number, rng.randrange(1, 30))
        for number in range(300)
    ]

    def ask(tokens: list[int]) -> int:
        fields = {"temperature": 1, "seed": len(tokens)}
        answer = one.complete(tokens, max_tokens=12, **fields)
        expected = mock_model.text(mock_model.answer(tokens, 12, **fields))
        assert answer["choices"][0]["text"] == expected
        assert cached(answer) <= (len(tokens) - 1) // PAGE * PAGE
        return cached(answer)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, asks)) > 300 * PAGE
    one.wait_idle()


def test_choices_prompts_and_streams_count_once(one: Server) -> None:
    tokens, other = prompt(4000, 50), prompt(4001, 40)
    one.complete(tokens, max_tokens=2)
    one.complete(other, max_tokens=2)
    assert cached(one.complete(tokens, max_tokens=2, n=4)) == 48
    body = {"model": one.model, "prompt": [tokens, other], "max_tokens": 2, "n": 2}
    both = one.call("POST", "/v1/completions", body).json()
    assert (both["usage"]["prompt_tokens"], cached(both)) == (90, 48 + 32)
    body = {"model": one.model, "prompt": tokens, "max_tokens": 2}
    body["stream_options"] = {"include_usage": True}
    *_, last, done = one.events("/v1/completions", body)
    assert done == "[DONE]"
    assert isinstance(last, dict)
    assert cached(last) == 48


def test_log_probabilities_of_a_prompt_are_computed_again(one: Server) -> None:
    tokens = prompt(5000, 60)
    first, again = (one.complete(tokens, max_tokens=2, prompt_logprobs=1) for _ in range(2))
    assert cached(again) == 0
    told = again["choices"][0]["prompt_logprobs"]
    assert told == first["choices"][0]["prompt_logprobs"]
    assert len(told) == 60
    assert cached(one.complete(tokens, max_tokens=2)) == 48


def test_a_salt_keeps_requests_of_one_tenant_apart(one: Server) -> None:
    tokens = prompt(6000, 64)
    salts = ["", "one", "two", "one", ""]
    found = [cached(one.complete(tokens, max_tokens=1, cache_salt=salt)) for salt in salts]
    assert found == [0, 0, 0, 48, 48]
    with dopd.Client(one.grpc) as client:
        answer = client.generate(tokens, max_tokens=1, cache_salt="two")
        assert answer.usage.cached_tokens == 48
        assert client.generate(tokens, max_tokens=1, cache_salt="three").usage.cached_tokens == 0


def test_metrics_count_tokens_asked_for_and_found() -> None:
    with serve(*ONE_WORKER) as server:
        for _ in range(3):
            server.complete(prompt(7000, 40), max_tokens=1)
        page = server.get("/metrics", address=server.admin).body.decode()
        rows = [line.rsplit(" ", 1) for line in page.splitlines() if "prefix_cache" in line]
        found = {name.split("{")[0]: float(value) for name, value in rows if name[0] != "#"}
        assert found["dopd_prefix_cache_queries_total"] == 120
        assert found["dopd_prefix_cache_hits_total"] == 64
        cached_pages = server.wait_idle()["workers"][0]["pages"]["cached"]
        assert cached_pages == 2


def test_tenants_share_nothing(tmp_path: Path) -> None:
    config = tmp_path / "dopd.toml"
    hashes = {key: hashlib.sha256(key.encode()).hexdigest() for key in KEYS}
    rows = (
        f'[[key]]\nname = "{key}"\ntenant = "of-{key}"\nsha256 = "{hashes[key]}"\n' for key in KEYS
    )
    config.write_text("".join(rows))
    tokens = prompt(8000, 80)

    def ask(server: Server, key: str) -> int:
        body = {"model": server.model, "prompt": tokens, "max_tokens": 3, "temperature": 0}
        headers = {"authorization": f"Bearer {key}"}
        answer = server.call("POST", "/v1/completions", body, headers=headers).json()
        expected = mock_model.text(mock_model.answer(tokens, 3))
        assert answer["choices"][0]["text"] == expected
        return cached(answer)

    with serve(*ONE_WORKER, "--config", config) as server:
        assert [ask(server, key) for key in ("alice", "bob", "alice", "bob")] == [0, 0, 64, 64]


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    config = tmp_path / "dopd.toml"
    config.write_text("[policy]\nprefix_cache = false\n")
    tokens = prompt(9000, 80)
    with serve(*ONE_WORKER, "--config", config) as server:
        assert [cached(server.complete(tokens, max_tokens=2)) for _ in range(3)] == [0, 0, 0]
        pages = server.wait_idle()["workers"][0]["pages"]
        assert (pages["cached"], pages["free"]) == (0, pages["total"])


def test_pages_are_evicted_where_they_are_needed(tmp_path: Path) -> None:
    """A pool of 64 pages serves prompts of 600 pages: the oldest make room, answers are right."""
    config = tmp_path / "dopd.toml"
    config.write_text('[worker]\nkv_memory = "8KiB"\n')
    with serve(*ONE_WORKER, "--config", config) as server:
        for number in range(60):
            tokens = prompt(10_000 + number % 45, 160)
            answer = server.complete(tokens, max_tokens=8)
            expected = mock_model.text(mock_model.answer(tokens, 8))
            assert answer["choices"][0]["text"] == expected
        pages = server.wait_idle()["workers"][0]["pages"]
        assert pages["free"] + pages["cached"] == pages["total"] == 64
        assert cached(server.complete(prompt(10_000 + 59 % 45, 160), max_tokens=1)) == 144


def test_a_hand_off_leaves_out_what_the_destination_has() -> None:
    """Two workers: what was handed off once, is cached at both."""
    tokens = prompt(11_000, 400)
    words = ("--mock", "--mock-timings", "h100-8b", "--prefill", "1", "--decode", "1")
    with serve(*words) as server:
        expected = mock_model.text(mock_model.answer(tokens, 40, ignore_eos=True))
        found = []
        for _ in range(4):
            answer = server.complete(tokens, max_tokens=40, ignore_eos=True)
            assert answer["choices"][0]["text"] == expected
            found.append(cached(answer))
        fleet = server.wait_idle()
        assert found == [0, 384, 384, 384]
        assert fleet["handoffs_total"] >= 2
        assert all(worker["pages"]["cached"] for worker in fleet["workers"])


def test_what_a_dead_worker_had_is_computed_again() -> None:
    tokens = prompt(12_000, 200)
    expected = mock_model.text(mock_model.answer(tokens, 8))
    with serve("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1") as server:
        for expected_tokens in (0, 192):
            answer = server.complete(tokens, max_tokens=8)
            assert (answer["choices"][0]["text"], cached(answer)) == (expected, expected_tokens)
        worker = server.wait_idle()["workers"][0]

        os.kill(worker["pid"], signal.SIGKILL)
        wait_for(
            lambda: [w for w in server.status()["workers"] if w["pid"] != worker["pid"]],
            "another worker",
        )
        answer = server.complete(tokens, max_tokens=8)
        assert (answer["choices"][0]["text"], cached(answer)) == (expected, 0)
