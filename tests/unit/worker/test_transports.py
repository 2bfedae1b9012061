"""Which ways to move pages a worker opens, by its settings, its pool and its machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dopd.errors import ConfigError
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer.base import LinkIdentity
from dopd.transfer.pairing import Transports
from dopd.types import Role
from dopd.worker.config import WorkerConfig
from dopd.worker.transports import Libraries, open_transports
from tests.support.gpu.cuda import shared_folder
from tests.support.gpu.machine import StubGpu
from tests.support.links import Recorder

IDENTITY = LinkIdentity("w", 1, 0x1234, "token")


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


@contextmanager
def opened(transports: str, pool: Any, libraries: Libraries, **more: Any) -> Iterator[Transports]:
    config = WorkerConfig(
        role=Role.MIXED,
        join="127.0.0.1:1",
        join_token="token",
        mock=True,
        name="w",
        transports=transports,
        **more,
    )
    transport = open_transports(config, IDENTITY, pool, Recorder(BytesPool(1, 1)), libraries)
    yield transport
    transport.close()


def names(transports: Transports) -> list[str]:
    return [endpoint.transport for endpoint in transports.endpoints]


def test_memory_of_the_host_travels_over_shm_and_tcp() -> None:
    with opened("auto", BytesPool(4, 4096), Libraries()) as transports:
        assert names(transports) == ["shm", "tcp"]


@pytest.mark.parametrize(
    ("has_nccl", "transports", "wanted"),
    [
        (True, "auto", ["cuda_ipc", "nccl", "tcp"]),
        (False, "auto", ["cuda_ipc", "tcp"]),
        (False, "tcp,cuda_ipc", ["tcp", "cuda_ipc"]),
        (True, "nccl", ["nccl"]),
    ],
)
def test_memory_of_a_gpu_travels_as_the_machine_allows(
    folder: Path, has_nccl: bool, transports: str, wanted: list[str]
) -> None:
    gpu = StubGpu(folder)
    nccl = str(gpu.nccl.path) if has_nccl else "/nowhere/libnccl.so.2"
    pool = gpu.pool(4, 4096).own
    with opened(transports, pool, Libraries(str(gpu.cuda.path), nccl)) as opened_ones:
        assert names(opened_ones) == wanted


def test_a_pool_without_a_handle_has_other_ways(folder: Path) -> None:
    """Torch's expandable segments."""
    gpu = StubGpu(folder)
    pool = gpu.pool(4, 4096).own
    gpu.cuda.fail("cuIpcGetMemHandle", code=1)
    libraries = Libraries(str(gpu.cuda.path), "/nowhere/libnccl.so.2")
    with opened("auto", pool, libraries) as transports:
        assert names(transports) == ["tcp"]
    gpu.cuda.fail("cuIpcGetMemHandle", code=1)
    error = (
        r"no transport cuda_ipc: cuIpcGetMemHandle: CUDA_ERROR_INVALID_VALUE \(1\): .*; "
        "unset expandable_segments and cudaMallocAsync in PYTORCH_CUDA_ALLOC_CONF; --transports"
    )
    with pytest.raises(ConfigError, match=error), opened("cuda_ipc,tcp", pool, libraries):
        pass


@pytest.mark.parametrize(
    ("transports", "error"),
    [
        ("cuda_ipc", "no transport cuda_ipc: the KV is in the host's memory, not on a GPU"),
        ("shm,nccl", "no transport nccl: the KV is in the host's memory"),
    ],
)
def test_what_was_named_and_cannot_be_had_is_refused(transports: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        opened(transports, BytesPool(4, 4096), Libraries()).__enter__()


def test_shm_is_not_for_a_gpus_memory(folder: Path) -> None:
    gpu = StubGpu(folder)
    libraries = Libraries(str(gpu.cuda.path))
    with pytest.raises(ConfigError, match="no transport shm: the pool is no sealed memory file"):
        opened("shm,tcp", gpu.pool(4, 4096).own, libraries).__enter__()


def test_a_gpus_memory_without_a_driver_is_refused(folder: Path) -> None:
    pool = StubGpu(folder).pool(4, 4096).own
    error = "KV is on cuda:0, but no usable CUDA driver: /nowhere"
    with pytest.raises(ConfigError, match=error):
        opened("auto", pool, Libraries("/nowhere")).__enter__()


def test_peers_are_told_the_address_that_was_given(folder: Path) -> None:
    gpu = StubGpu(folder)
    libraries = Libraries(str(gpu.cuda.path), "/nowhere")
    pool = gpu.pool(4, 4096).own
    with opened("auto", pool, libraries, data_advertise="127.0.0.1:77") as transports:
        addresses = {one.transport: one.address for one in transports.endpoints}
        assert addresses["tcp"] == "127.0.0.1:77"
        assert addresses["cuda_ipc"].startswith("dopd-")
