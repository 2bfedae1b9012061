"""Prefill and decode on two workers answer as one worker does, and pages come back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import mock_model
from tests.support.faults.fleet import all_travels
from tests.support.server import Server, serve

PROMPTS = [
    [random.Random(length).randrange(256) for _ in range(length)]
    for length in (1, 15, 16, 17, 31, 32, 33, 250, 4_000)
]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Steps take as long as on a GPU: an instant answer ends before its pages could move."""
    words = all_travels(tmp_path_factory.mktemp("split"))
    # Canaries are handed off, too.
    env = {"DOPD_WORKERS__CANARY_INTERVAL_MS": "0"}
    with serve("--mock", "--mock-timings", "h100-8b", *words, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def mixed() -> Iterator[Server]:
    with serve("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1") as server:
        yield server


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_split_equals_mixed_equals_the_model(
    split: Server, mixed: Server, prompt: list[int]
) -> None:
    texts = [
        server.complete(prompt, max_tokens=48, ignore_eos=True)["choices"][0]["text"]
        for server in (split, mixed)
    ]
    expected = mock_model.text(mock_model.answer(prompt, 48, ignore_eos=True))
    assert texts == [expected, expected]


def test_every_split_answer_was_handed_off(split: Server) -> None:
    before = split.wait_idle()["handoffs_total"]
    for _ in range(5):
        split.complete([3] * 40, max_tokens=40, ignore_eos=True)
    assert split.wait_idle()["handoffs_total"] - before == 5


def test_the_status_shows_how_pages_travel(split: Server) -> None:
    split.complete([3] * 40, max_tokens=40, ignore_eos=True)
    fleet = split.wait_idle()
    ways = [
        (worker["id"], link["peer"], link["transport"])
        for worker in fleet["workers"]
        for link in worker["links"]
    ]
    assert ways == [("prefill-0", "decode-0", "shm")]


@pytest.mark.parametrize("timings", ["instant", "h100-8b"])
def test_many_at_once_are_all_right_and_all_pages_come_back(
    mock: Server, split: Server, timings: str
) -> None:
    server = mock if timings == "instant" else split

    def ask(index: int) -> tuple[str, str]:
        prompt = [index % 256] * (1 + index % 70)
        found = server.complete(prompt, max_tokens=20, temperature=1, seed=index)
        expected = mock_model.answer(prompt, 20, temperature=1, seed=index)
        return found["choices"][0]["text"], mock_model.text(expected)

    with ThreadPoolExecutor(16) as pool:
        for got, expected in pool.map(ask, range(200)):
            assert got == expected
    for worker in server.wait_idle()["workers"]:
        pages = worker["pages"]
        assert pages["free"] + pages["cached"] == pages["total"]


def test_several_workers_of_each_role() -> None:
    with serve("--mock", "--prefill", "2", "--decode", "2") as server:
        roles = sorted(worker["role"] for worker in server.status()["workers"])
        assert roles == ["decode", "decode", "prefill", "prefill"]
        for prompt in PROMPTS[:4]:
            found = server.complete(prompt, max_tokens=12)["choices"][0]["text"]
            assert found == mock_model.text(mock_model.answer(prompt, 12))
