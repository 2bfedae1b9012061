"""The pool: pages are the tensor's own bytes, and sizes are checked before memory is taken."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dopd.errors import ConfigError, DopdError
from dopd.kv.budget import memory_for, pages_in
from dopd.kv.layout import page_bytes
from dopd.kv.pool import KvPool, fill_at_once, gathered
from dopd.kv.size import parse_memory

SHAPE = (3, 4, 2, 8)
CPU = torch.device("cpu")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_page_is_the_bytes_of_its_tensor(dtype: torch.dtype) -> None:
    pool = KvPool(SHAPE, 5, dtype, CPU)
    page = pool.page(3)
    assert len(page) == pool.page_bytes == page_bytes(str(dtype).removeprefix("torch."), 4, 3, 2, 8)
    assert not page.readonly
    assert bytes(page) == bytes(pool.page_bytes)

    values = torch.randn(pool.tensor[3].shape, generator=seeded()).to(dtype)
    pool.tensor[3] = values
    assert bytes(page) == values.view(torch.uint8).numpy().tobytes()
    page[:] = bytes(pool.page_bytes)
    assert not pool.tensor.any()


def test_bytes_copied_between_pools_carry_the_values() -> None:
    source, target = (KvPool(SHAPE, 4, torch.float32, CPU) for _ in range(2))
    source.tensor.normal_()
    target.page(0)[:] = source.page(2)
    assert torch.equal(target.tensor[0], source.tensor[2])
    assert not target.tensor[1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fill_overwrites_whole_pages_and_255_is_nan(dtype: torch.dtype) -> None:
    pool = KvPool(SHAPE, 5, dtype, CPU)
    pool.tensor.fill_(1)
    pool.fill([1, 4], 0xFF)
    pool.fill(range(2, 3), 0)
    told = [(bool(page.isnan().all()), float(page.float().nansum())) for page in pool.tensor]
    whole = float(pool.tensor[0].numel())
    assert told == [(False, whole), (True, 0.0), (False, 0.0), (False, whole), (True, 0.0)]


@pytest.mark.parametrize("index", [-1, 5])
def test_page_outside_the_pool_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"page {index} is outside the pool of 5"):
        KvPool(SHAPE, 5, torch.float32, CPU).page(index)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2 gb", 2 * 10**9),
        ("4096", 4096),
        ("7KiB", 7168),
    ],
)
def test_memory_is_parsed(text: str, num_bytes: int) -> None:
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1GiB", "1TiB", "1e9", "1.GiB", "nan", "9" * 20])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_memory(text)


def test_more_memory_than_the_machine_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="is more than the"):
        memory_for("999999GiB")


def test_default_memory_is_modest() -> None:
    assert memory_for(None) <= 512 << 20


def test_pool_must_hold_the_longest_sequence() -> None:
    assert pages_in(1 << 20, 1 << 10, 16, 1024 * 16) == 1024
    with pytest.raises(
        ConfigError, match=r"holds 16384 tokens.*max-model-len 16385.*at least 2 MiB"
    ):
        pages_in(1 << 20, 1 << 10, 16, 16385)


def test_nobody_is_told_of_dummy_pages() -> None:
    pool = KvPool(SHAPE, 5, torch.float32, CPU, num_dummies=1)
    assert (pool.num_pages, len(pool.tensor)) == (5, 6)
    with pytest.raises(IndexError, match="page 5 is outside the pool of 5"):
        pool.page(5)
    pool.fill([4], 0xFF)
    assert pool.tensor[4].isnan().all() and not pool.tensor[5].any()


@pytest.mark.parametrize("page_bytes", [4, 24, 130, 256, 1000])
@pytest.mark.parametrize("byte", [0, 7, 0xFF])
def test_a_gpus_way_to_fill_pages_is_the_cpus(page_bytes: int, byte: int) -> None:
    content = torch.randint(0, 256, (9, page_bytes), generator=seeded(), dtype=torch.uint8)
    wanted = content.clone()
    for page in (7, 0, 3):
        wanted[page] = byte
    fill_at_once(content, [7, 0, 3], byte)
    assert torch.equal(content, wanted)
    fill_at_once(content, range(4, 6), byte)
    assert (content[4:6] == byte).all()


@pytest.mark.parametrize("edge_bytes", [None, 64, 1])
@pytest.mark.parametrize("pages", [[], [4], [4, 0, 2], [1, 1]])
def test_a_gpus_way_to_read_pages_is_the_cpus(edge_bytes: int | None, pages: list[int]) -> None:
    for head_dim in (1, 8, 17):
        pool = KvPool((3, 2, 1, head_dim), 5, torch.float16, CPU)
        pool.tensor.normal_()
        content = pool.tensor.view(5, -1).view(torch.uint8)
        wanted = b"".join(map(bytes, pool.chunks(pages, edge_bytes)))
        assert bytes(gathered(content, pages, edge_bytes)) == wanted


class Devices:
    """What torch.cuda makes of a thread that stands at device 0, and of a stream of device 1."""

    def __init__(self) -> None:
        self.current = 0
        # Those that the thread was set to for good: each gets a context.
        self.contexts: set[int] = set()
        self.log: list[str] = []

    @contextmanager
    def device(self, _: torch.device) -> Iterator[None]:
        before, self.current = self.current, 1
        self.contexts.add(1)
        yield
        # Goes back only where there is a context already (torch's _maybe_exchange_device).
        self.current = before if before in self.contexts else 1

    @contextmanager
    def stream(self, stream: "Devices") -> Iterator[None]:
        before, self.current = self.current, 1
        stream.log.append("in")
        yield
        self.current = before
        self.contexts |= {before, 1}

    def synchronize(self) -> None:
        self.log.append("synchronise")


def test_a_gpus_pool_makes_no_context_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, devices = KvPool(SHAPE, 5, torch.float32, CPU), Devices()
    monkeypatch.setattr(torch.cuda, "device", devices.device)
    monkeypatch.setattr(torch.cuda, "stream", devices.stream)
    monkeypatch.setattr(pool, "_bytes", None)
    monkeypatch.setattr(pool, "_stream", devices, raising=False)
    pool.fill([1, 4], 7)
    assert b"".join(map(bytes, pool.chunks([4, 1], None))) == bytes([7]) * 2 * pool.page_bytes
    assert devices.log == ["in", "synchronise", "in"]
    assert devices.contexts == {1}


def test_a_pool_on_the_cpu_has_no_device_addresses() -> None:
    pool = KvPool(SHAPE, 5, torch.float32, CPU)
    assert pool.device == "cpu"
    with pytest.raises(DopdError, match="page 3 is on the cpu"):
        pool.address(3)
