"""The binding of NCCL: against its double, and against the real library where torch brings it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import pytest

from dopd.errors import LinkError
from dopd.transfer import nccl
from dopd.transfer.nccl import PROTOTYPES, Communicator, Config, Nccl, address_of, version_text
from tests.support.gpu.cuda import shared_folder
from tests.support.gpu.machine import StubGpu
from tests.support.links import wait_for

REAL = nccl.candidates()[0]
needs_real = pytest.mark.skipif(
    REAL == nccl.LIBRARY, reason="no wheel nvidia-nccl here: torch without CUDA brings none"
)


@pytest.fixture
def gpu() -> Iterator[StubGpu]:
    with shared_folder() as folder:
        gpu = StubGpu(folder)
        yield gpu
        wait_for(lambda: not gpu.left(), gpu.left)
        gpu.check()


def test_the_configuration_is_that_of_2_28() -> None:
    """80 bytes on every 64-bit Linux; the double checks what is in them."""
    assert ctypes.sizeof(Config) == 80
    assert [Config.net_name.offset, Config.comm_name.offset] == [32, 48]
    wanted = nccl.config()
    assert (wanted.size, wanted.magic, wanted.version) == (80, 0xCAFEBEEF, 22800)
    assert (wanted.blocking, wanted.max_ctas) == (0, nccl.MAX_CTAS)
    assert (wanted.min_ctas, wanted.nvlink_centric_sched, wanted.net_name) == (-(2**31),) * 2 + (
        None,
    )


def test_a_missing_library_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = "libdopd-absent.so.2"
    monkeypatch.setattr(nccl, "LIBRARY", absent)
    folder = tmp_path / "nvidia" / "nccl" / "lib"
    folder.mkdir(parents=True)
    (folder / absent).write_text("no library")
    found = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "nvidia")]})
    monkeypatch.setattr(nccl.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(LinkError) as error:
        Nccl.load()
    text = str(error.value)
    assert re.search(rf"{folder / absent}: .*file too short|invalid ELF", text), text
    assert f"; {absent}: " in text
    assert "nvidia-nccl-cu13" in text


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/nowhere/libnccl.so.2", "/nowhere/libnccl.so.2: .*No such file"),
        ("libc.so.6", "libc.so.6: .*undefined symbol: ncclGetVersion"),
    ],
)
def test_a_library_that_is_named_is_the_only_one_tried(path: str, error: str) -> None:
    with pytest.raises(LinkError, match=error) as raised:
        Nccl.load(path)
    assert str(raised.value).count(";") == 1


def test_an_old_library_is_refused_with_its_version(gpu: StubGpu) -> None:
    gpu.nccl.library.stub_version(22705)
    with pytest.raises(LinkError, match=r"version 2\.27\.5, 2\.28\.0 is needed"):
        Nccl.load(str(gpu.nccl.path))
    gpu.nccl.library.stub_version(23100)
    assert version_text(Nccl.load(str(gpu.nccl.path)).version) == "2.31.0"
    gpu.nccl.fail("ncclGetVersion", 1, 2)
    with pytest.raises(LinkError, match=r"ncclGetVersion: unhandled system error \(2\): stub"):
        Nccl.load(str(gpu.nccl.path))


def test_one_id_for_all_pairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_COMM_ID", "127.0.0.1:1234")
    with pytest.raises(LinkError, match="NCCL_COMM_ID is set"):
        Nccl.load()


def test_calls_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch, gpu: StubGpu) -> None:
    """None of our limits would hold: the library puts it above what a communicator asks for."""
    path = str(gpu.nccl.path)
    monkeypatch.setenv("NCCL_COMM_BLOCKING", "1")
    with pytest.raises(LinkError, match=r"NCCL_COMM_BLOCKING is '1', .*: unset it"):
        Nccl.load(path)
    monkeypatch.setenv("NCCL_COMM_BLOCKING", "0")
    Nccl.load(path)


def test_the_environment_is_set_as_far_as_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("NCCL_SOCKET_IFNAME", "NCCL_NVLS_ENABLE", "NCCL_MULTI_RANK_GPU_ENABLE")
    for name in names:
        # Known to monkeypatch, which puts back what was there.
        monkeypatch.setenv(name, "")
    nccl.set_environment(is_loopback=False, is_device_shared=False)
    assert [os.environ[name] for name in names] == ["", "0", ""]
    nccl.set_environment(is_loopback=True, is_device_shared=True)
    assert [os.environ[name] for name in names] == ["lo", "0", "1"]
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    nccl.set_environment(is_loopback=True, is_device_shared=True)
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth7"


def test_two_ranks_move_bytes_and_an_id_is_retired(gpu: StubGpu) -> None:
    unique_id = gpu.nccl.nccl.unique_id()
    pool, stream = gpu.pool(8, 64), gpu.cuda.device.stream()
    pool.page(1)[:] = bytes(range(64))
    other = gpu.cuda.device.stream()
    ranks = [gpu.nccl.nccl.join(unique_id, rank) for rank in (0, 1)]
    for rank in ranks:
        wait_for(rank.is_ready, lambda: "not ready")
    ranks[0].send([pool.address(1)], 64, stream.handle)
    ranks[1].receive([pool.address(5)], 64, other.handle)
    for rank in ranks:
        wait_for(rank.is_ready, lambda: "not ready")
    assert other.synchronise(10)
    assert pool.page(5) == pool.page(1)
    for rank, own in zip(ranks, (stream, other), strict=True):
        rank.abort()
        assert own.synchronise(10)
        own.close()
    # Nobody comes for the second one.
    gpu.nccl.nccl.retire(gpu.nccl.nccl.unique_id())
    # Nobody waits for the first one any more.
    gpu.nccl.nccl.retire(unique_id)


def test_an_id_is_retired_where_it_says_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    ipv6 = b"m" * 8 + b"\x0a\0\x1f\x90" + bytes(4) + socket.inet_pton(socket.AF_INET6, "::1")
    assert address_of(ipv6 + bytes(128 - len(ipv6))) == ("::1", 8080)
    assert address_of(b"m" * 8 + b"\x02\0\0\x50\x7f\0\0\x01" + bytes(112)) == ("127.0.0.1", 80)
    assert address_of(b"\xff" * 128) is None
    library = Nccl.__new__(Nccl)
    library.version = 24000
    library.retire(b"\xff" * 128)
    assert "NCCL 2.40.0: its ids say no address" in caplog.text


class Script:
    """An Nccl whose calls are noted, and return what they are told to."""

    def __init__(self, **codes: int) -> None:
        self.codes = codes
        self.calls: list[str] = []
        self.inside = threading.Semaphore(1)

    def code(self, name: str, *arguments: Any) -> int:
        assert self.inside.acquire(blocking=False), "two threads at once"
        self.calls.append(name)
        if name == "ncclCommGetAsyncError":
            arguments[1]._obj.value = self.codes.get("state", 0)
        code = self.codes.get(name, 0)
        # Others have a turn while this one is inside.
        time.sleep(1e-5)
        self.inside.release()
        return code

    call = Nccl.call

    def text(self, name: str, code: int) -> str:
        return f"{name} said {code}"


def test_a_group_is_closed_whatever_happens_in_it() -> None:
    for name, code in (("ncclSend", 4), ("ncclGroupEnd", 5), ("ncclGroupStart", 3)):
        script = Script(**{name: code})
        communicator = Communicator(script, c_void_p(1), 1)
        with pytest.raises(LinkError, match=f"{name} said {code}"):
            communicator.send([64, 128], 64, 7)
        assert script.calls.count("ncclGroupStart") == 1
        assert script.calls.count("ncclGroupEnd") == (name != "ncclGroupStart")


@pytest.mark.parametrize("abort", [0, 1, 7])
def test_nothing_is_called_after_an_abort(abort: int, caplog: pytest.LogCaptureFixture) -> None:
    script = Script(ncclCommAbort=abort)
    communicator = Communicator(script, c_void_p(1), 1)
    for _ in range(3):
        communicator.abort()
    for call in (
        communicator.is_ready,
        lambda: communicator.send([64], 64, 7),
        lambda: communicator.receive([64], 64, 7),
    ):
        with pytest.raises(LinkError, match="the communicator is aborted"):
            call()
    assert script.calls == ["ncclCommAbort"]
    assert ("is lost" in caplog.text) == (abort == 1)


def test_one_thread_at_a_time_is_in_a_communicator() -> None:
    script = Script()
    communicator = Communicator(script, c_void_p(1), 1)
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(50):
                communicator.is_ready()
                communicator.send([64, 128], 64, 7)
        except (AssertionError, LinkError) as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    # No call of another thread between the start of a group and its end.
    group = ["ncclGroupStart", "ncclSend", "ncclSend", "ncclGroupEnd"]
    calls = [name for name in script.calls if name != "ncclCommGetAsyncError"]
    assert calls == group * (4 * 50)
    starts = [i for i, name in enumerate(script.calls) if name == "ncclGroupStart"]
    assert all(script.calls[i : i + 4] == group for i in starts)


@pytest.mark.parametrize(("state", "is_ready"), [(0, True), (7, False)])
def test_a_communicator_is_ready_when_the_library_says_so(state: int, is_ready: bool) -> None:
    assert Communicator(Script(state=state), c_void_p(1), 1).is_ready() == is_ready


# The real library, as far as it goes without a GPU

PROBE = """
import json, os, time
from dopd.errors import LinkError
from dopd.transfer import nccl

def threads():
    return len(os.listdir("/proc/self/task"))

nccl.set_environment(is_loopback=True, is_device_shared=True)
library = nccl.Nccl.load()
before = threads()
unique_ids = [library.unique_id() for _ in range(3)]
waiting = threads()
try:
    library.join(unique_ids[0], 0).abort()
    error = ""
except LinkError as failure:
    error = str(failure)
for unique_id in unique_ids:
    library.retire(unique_id)
for _ in range(1000):
    if threads() <= before + 1:
        break
    time.sleep(0.01)
print(json.dumps({
    "version": library.version,
    "addresses": [nccl.address_of(unique_id) for unique_id in unique_ids],
    "threads": [before, waiting, threads()],
    "texts": [library.text("call", code) for code in range(9)],
    "error": error,
}))
"""


@needs_real
def test_the_real_library_listens_on_loopback_says_its_errors_and_lets_ids_go() -> None:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("NCCL_")}
    command = [sys.executable, "-c", PROBE]
    process = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=50)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout.splitlines()[-1])
    assert told["version"] >= nccl.VERSION_MIN
    assert [host for host, _ in told["addresses"]] == ["127.0.0.1"] * 3
    assert len({port for _, port in told["addresses"]}) == 3
    # One thread an id until it is retired; the binding thinks it knows how.
    before, waiting, after = told["threads"]
    assert waiting >= before + 3
    assert after <= before + 1
    assert "internal error" in told["texts"][3]
    assert "in progress" in told["texts"][7]
    if not Path("/dev/nvidiactl").exists():
        assert told["error"].startswith("ncclCommInitRankConfig: unhandled cuda error"), told
        assert "(1): Cuda failure" in told["error"], told


# What the header calls them: our argument types.
C_TYPES = {
    "int*": POINTER(c_int),
    "ncclUniqueId*": POINTER(nccl._UniqueId),
    "ncclComm_t*": POINTER(c_void_p),
    "int": c_int,
    "ncclUniqueId": nccl._UniqueId,
    "ncclConfig_t*": POINTER(Config),
    "ncclComm_t": c_void_p,
    "ncclResult_t*": POINTER(c_int),
    "void*": c_void_p,
    "size_t": c_size_t,
    "ncclDataType_t": c_int,
    "cudaStream_t": c_void_p,
    "": None,
    "void": None,
}


def header() -> str:
    path = Path(REAL).parent.parent / "include" / "nccl.h"
    if not path.exists():
        pytest.skip(f"no {path}")
    return re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@needs_real
@pytest.mark.parametrize("name", PROTOTYPES)
def test_the_header_of_the_real_library_declares_what_is_bound(name: str) -> None:
    declared = re.search(rf"^ncclResult_t\s+{name}\((.*?)\);", header(), re.DOTALL | re.MULTILINE)
    assert declared is not None
    types = []
    for argument in declared[1].split(","):
        words = re.sub(r"\bconst\b", "", argument).replace("*", " * ").split()
        kind = "".join(word for word in words if word == "*")
        types.append(C_TYPES[(words[0] if words else "") + kind])
    assert tuple(kind for kind in types if kind is not None) == PROTOTYPES[name]


@needs_real
def test_the_header_of_the_real_library_begins_its_configuration_as_ours() -> None:
    """Newer libraries add fields at the end, and read `size`."""
    declared = re.search(r"typedef struct ncclConfig_v\w+ \{(.*?)\} ncclConfig_t;", header(), re.S)
    assert declared is not None
    kinds = {"size_t": c_size_t, "unsigned int": c_uint, "int": c_int, "const char *": c_char_p}
    fields = re.findall(r"(size_t|unsigned int|int|const char \*)\s*(\w+);", declared[1])
    theirs = [(name.lower(), kinds[kind]) for kind, name in fields]
    ours = [(name.replace("_", ""), kind) for name, kind in Config._fields_]
    renamed = {
        "channelsperpeer": "nchannelspernetpeer",
        "channelspernetpeer": "nchannelspernetpeer",
    }
    ours = [(renamed.get(name, name), kind) for name, kind in ours]
    assert theirs[: len(ours)] == ours
