"""The binding of the CUDA driver, against its double; and its prototypes, against the header."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopd.errors import LinkError
from dopd.transfer import cuda
from dopd.transfer.cuda import Driver
from tests.support.gpu.cuda import StubCuda, shared_folder

SIZE = 4096


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


@pytest.fixture
def stub(folder: Path) -> Iterator[StubCuda]:
    stub = StubCuda(folder)
    yield stub
    stub.check()


def test_no_driver_is_a_link_error_that_says_so() -> None:
    with pytest.raises(LinkError, match=r"no usable CUDA driver: /nowhere/libcuda\.so\.1"):
        Driver.open("/nowhere/libcuda.so.1")


def test_a_library_without_the_calls_is_no_driver() -> None:
    with pytest.raises(LinkError, match="no usable CUDA driver"):
        Driver.open("libc.so.6")


def test_no_device_is_a_link_error_with_name_and_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CUDA_DEVICES", "0")
    with pytest.raises(LinkError, match=r"cuInit: CUDA_ERROR_NO_DEVICE \(100\)"):
        StubCuda(folder)


def test_devices_are_found_by_their_uuid(stub: StubCuda) -> None:
    driver = stub.driver
    uuids = [driver.uuid(ordinal) for ordinal in range(driver.num_devices())]
    assert [len(uuid) for uuid in uuids] == [16, 16]
    assert [driver.find(uuid) for uuid in uuids] == [0, 1]
    assert driver.find(bytes(16)) is None
    assert driver.can_access(0, 1) and driver.can_access(1, 1)
    stub.has_peers(can_access=False)
    assert not driver.can_access(0, 1) and driver.can_access(1, 1)


def test_a_copy_is_there_when_the_stream_is_synchronised_and_not_before(stub: StubCuda) -> None:
    device, stream = stub.device, stub.device.stream()
    source, target = stub.allocate(SIZE), stub.allocate(SIZE)
    stub.peek(source, SIZE)[:] = b"\7" * SIZE
    stub.hold(is_held=True)
    stream.copy(target + 100, source, 50)
    event = stream.record()
    assert not stream.synchronise(0.01) and not event.wait(0.01)
    assert not any(stub.peek(target, SIZE))
    stub.hold(is_held=False)
    assert event.wait(10) and stream.synchronise(10)
    assert bytes(stub.peek(target, SIZE)) == bytes(100) + b"\7" * 50 + bytes(SIZE - 150)
    event.close()
    event.close()
    stream.close()
    stream.close()
    device.release()
    stub.check_given_back()


def test_pinned_memory_is_copied_from_and_to(stub: StubCuda) -> None:
    stream, buffer = stub.device.stream(), stub.device.pin(SIZE)
    memory = stub.allocate(SIZE)
    buffer.view[:] = bytes(range(256)) * 16
    stream.copy(memory, buffer.address, SIZE)
    assert stream.synchronise(10)
    assert bytes(stub.peek(memory, SIZE)) == bytes(range(256)) * 16
    buffer.view[:] = bytes(SIZE)
    stream.copy(buffer.address + 1, memory + 1, 255)
    assert stream.synchronise(10)
    assert bytes(buffer.view[:257]) == bytes(range(256)) + b"\0"
    buffer.close()
    buffer.close()
    stream.close()
    stub.check_given_back()


def test_an_allocation_opens_in_another_process_and_not_in_its_own(folder: Path) -> None:
    ours, theirs = StubCuda(folder), StubCuda(folder)
    base = theirs.allocate(2 * SIZE)
    handle = theirs.device.ipc_handle(base + SIZE)
    assert (len(handle.handle), handle.offset, handle.size) == (64, SIZE, 2 * SIZE)
    with pytest.raises(LinkError, match="cuIpcOpenMemHandle_v2"):
        theirs.device.ipc_open(handle.handle)
    opened = ours.device.ipc_open(handle.handle)
    assert ours.device.ipc_open(handle.handle) == opened
    assert ours.device.address_range(opened + 5) == (opened, 2 * SIZE)
    theirs.peek(base + SIZE, 3)[:] = b"abc"
    assert bytes(ours.peek(opened + handle.offset, 3)) == b"abc"
    for _ in range(2):
        ours.device.ipc_close(opened)
    with pytest.raises(LinkError):
        ours.device.address_range(opened)
    assert ours.live()["imports"] == 0
    theirs.check()


@pytest.mark.parametrize(
    "handle", [bytes(64), b"STUB" + bytes(60), b"STUB\0\0\0\0../x" + bytes(52)]
)
def test_a_handle_of_nothing_is_refused(stub: StubCuda, handle: bytes) -> None:
    with pytest.raises(LinkError, match=r"CUDA_ERROR_INVALID_HANDLE \(400\)"):
        stub.device.ipc_open(handle)


def test_every_thread_has_the_device(stub: StubCuda) -> None:
    streams: list[cuda.Stream] = []
    thread = threading.Thread(target=lambda: streams.append(stub.device.stream()))
    thread.start()
    thread.join()
    assert streams[0].synchronise(0)
    streams[0].close()
    assert stub.calls("cuCtxSetCurrent") == 2
    stub.device.pin(1).close()
    assert stub.calls("cuCtxSetCurrent") == 2


def test_giving_back_is_tried_again_and_then_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = StubCuda(folder)
    stream = stub.device.stream()
    stub.fail("cuStreamDestroy_v2")
    stream.close()
    assert stub.live()["streams"] == 0
    assert not caplog.records
    stub.device.ipc_close(stub.allocate(1))
    assert caplog.records[-1].message.startswith("cuIpcCloseMemHandle: CUDA_ERROR_INVALID_VALUE")


def test_failed_work_is_an_error_of_who_waits(stub: StubCuda) -> None:
    stream = stub.device.stream()
    target, source = stub.allocate(SIZE), stub.allocate(SIZE)
    stub.fail("stub_execute", code=700)
    stream.copy(target, source, SIZE)
    with pytest.raises(LinkError, match=r"cuStreamQuery: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        stream.synchronise(10)


def test_an_event_that_cannot_be_recorded_is_not_left(stub: StubCuda) -> None:
    stream = stub.device.stream()
    stub.fail("cuEventRecord")
    with pytest.raises(LinkError, match=r"cuEventRecord: CUDA_ERROR_UNKNOWN \(999\)"):
        stream.record()
    stream.close()
    stub.check_given_back()


def test_sizes_are_those_of_the_header() -> None:
    assert ctypes.sizeof(cuda._Uuid) == cuda.UUID_BYTES == 16
    assert ctypes.sizeof(cuda._IpcMemHandle) == cuda.IPC_HANDLE_BYTES == 64
