"""A GPU's memory among those that share it: weights, steps and pool stay within one's share."""

import pytest
import torch

from dopd.engine.torch_device import CONTEXT_BYTES, device_memory
from dopd.errors import ConfigError
from dopd.kv.budget import DeviceMemory, memory_for

GIB = 1 << 30
CUDA = torch.device("cuda", 1)


def gpu(share: float = 0.9, held: int = 16, reserve: int = 2, free: int = 64) -> DeviceMemory:
    """80 GiB; the others in GiB."""
    return DeviceMemory("cuda:1 H", 80 * GIB, free * GIB, held * GIB, reserve * GIB, share)


def test_the_pool_gets_what_weights_and_steps_leave_of_the_share() -> None:
    assert memory_for(None, gpu()) == (72 - 16 - 2) * GIB


@pytest.mark.parametrize("count", [1, 2, 3])
def test_those_who_share_a_gpu_fit_beside_each_other(count: int) -> None:
    free, spent = 80, 0
    for _ in range(count):
        # Whoever loads next sees what the others took.
        pool = memory_for(None, gpu(0.9 / count, 16, 2, free - 16))
        spent += 16 * GIB + 2 * GIB + pool
        free = 80 - spent // GIB
    assert 0.85 * 80 * GIB < spent <= 0.9 * 80 * GIB


def test_what_others_hold_is_not_promised(caplog: pytest.LogCaptureFixture) -> None:
    assert memory_for(None, gpu(free=20)) == 18 * GIB
    assert "has 20480 MiB free, fewer than gpu-memory-utilization 0.9 leaves" in caplog.text


def test_a_share_without_room_for_a_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0.2 of the 81920 MiB of cuda:1 H is 16384 MiB, but"):
        memory_for(None, gpu(0.2))


def test_a_device_that_others_have_filled_is_named() -> None:
    """And not the longest sequence, which nothing is wrong with."""
    with pytest.raises(ConfigError, match="cuda:1 H has 1024 MiB free of 81920 MiB, and steps"):
        memory_for(None, gpu(free=1))


def test_a_size_that_was_asked_for_stands_if_it_is_there() -> None:
    assert memory_for("30GiB", gpu(0.2)) == 30 * GIB
    with pytest.raises(ConfigError, match="kv-memory 63GiB is more than the 63488 MiB that cuda:1"):
        memory_for("63GiB", gpu())


def test_a_device_is_asked_what_is_free_and_torch_what_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H")
    held = 5 + CONTEXT_BYTES
    assert device_memory(CUDA, 0.5, 3) == DeviceMemory("cuda:1 H", 9, 7, held, 3, 0.5)
    assert device_memory(torch.device("cpu"), 0.5) is None
