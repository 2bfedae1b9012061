"""Prefill and decode on GPUs of their own: real processes, a real router, real links; only what
libcuda and libnccl would do is played, by their doubles."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.faults.fleet import all_travels
from tests.support.gpu import nccl
from tests.support.gpu.cuda import built, shared_folder
from tests.support.processes import Process, ended, wait_for
from tests.support.server import Server, serve

PROMPTS = [[n % 256 for n in range(length)] for length in (1, 16, 33, 500, 4_000)]
# Of each answer, long enough for pages to move before it ends.
NUM_TOKENS = 40
NO_CANARY = {"DOPD_WORKERS__CANARY_INTERVAL_MS": "0"}


@contextlib.contextmanager
def gpu_worker(
    role: str, way: str, server: Server, folder: Path, memory: Path
) -> Iterator[Process]:
    assert server.join_token_file
    words = ["-m", "tests.support.gpu.worker", memory, "--mock", "--mock-timings", "h100-8b"]
    words += ["--role", role, "--name", role, "--transports", way, "--join", server.workers]
    words += ["--join-token-file", server.join_token_file, "--debug-checks", "--kv-poison"]
    # A page that is used before its copy is done is seen in the answer.
    env = {"STUB_CUDA_DELAY_US": "1000"}
    process = Process(folder / role, *words, env=env, program=Path(sys.executable))
    with ended(process):
        yield process


@contextlib.contextmanager
def split(way: str, folder: Path) -> Iterator[tuple[Server, Process, Process]]:
    """A router, a prefill worker, a decode worker."""
    # Here, and not once more in each process.
    built()
    built(nccl.SOURCE)
    with (
        shared_folder() as memory,
        serve("--mock", *all_travels(folder), command="router", env=NO_CANARY) as server,
        gpu_worker("prefill", way, server, folder, memory) as prefill,
        gpu_worker("decode", way, server, folder, memory) as decode,
    ):
        wait_for(lambda: len(server.status()["workers"]) == 2, "both workers are attached")
        yield server, prefill, decode


def is_right(server: Server, prompt: list[int], seed: int) -> bool:
    sampling = {"temperature": seed % 2, "seed": seed, "ignore_eos": True}
    found = server.complete(prompt, max_tokens=NUM_TOKENS, **sampling)
    text: str = found["choices"][0]["text"]
    return text == mock_model.text(mock_model.answer(prompt, NUM_TOKENS, **sampling))


@pytest.mark.parametrize(("way", "taken"), [("nccl", "nccl"), ("auto", "cuda_ipc"), ("tcp", "tcp")])
def test_every_answer_is_handed_off_between_gpus_and_all_is_given_back(
    way: str, taken: str, tmp_path: Path
) -> None:
    with split(way, tmp_path) as (server, prefill, decode):
        with ThreadPoolExecutor(8) as pool:
            seeds = range(3 * len(PROMPTS))
            assert all(pool.map(lambda n: is_right(server, PROMPTS[n % len(PROMPTS)], n), seeds))
        fleet = server.wait_idle()
        assert fleet["handoffs_total"] == len(seeds)
        assert fleet["replays_total"] == 0
        assert f"over {taken} is up" in prefill.told()
        assert f"over {taken} is up" in decode.told()
        links = {one["role"]: one["links"] for one in fleet["workers"]}
        assert [(link["peer"], link["transport"]) for link in links["prefill"]] == [
            ("decode", taken)
        ]
        assert links["decode"] == []
        # Without work it ends at once; 70: its libraries were used wrongly, or kept something.
        for worker in (prefill, decode):
            assert worker.stop(signal.SIGTERM) == 0, worker.told()


@pytest.mark.parametrize("way", ["nccl", "cuda_ipc", "tcp"])
def test_a_prefill_worker_that_is_killed_costs_no_answer_and_leaves_nothing(
    way: str, tmp_path: Path
) -> None:
    with split(way, tmp_path) as (server, prefill, decode):
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(is_right, server, PROMPTS[4], n) for n in range(8)]
            wait_for(lambda: f"over {way} is up" in decode.told(), "the link is up")
            prefill.kill()
            assert all(answer.result() for answer in answers)
        server.wait_idle()
        assert decode.stop(signal.SIGTERM) == 0, decode.told()
