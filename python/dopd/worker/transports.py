"""Opens the transports that the settings ask for, or those that pool and machine have."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

from dopd.errors import ConfigError, LinkError
from dopd.kv.base import CPU, PagePool
from dopd.transfer import nccl
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.cuda import Device, Driver
from dopd.transfer.cuda_ipc import CudaIpcTransport
from dopd.transfer.nccl import Nccl
from dopd.transfer.nccl_link import NcclTransport
from dopd.transfer.pairing import Transports
from dopd.transfer.shm import ShmTransport
from dopd.transfer.stream import StreamTransport
from dopd.transfer.tcp import TcpTransport
from dopd.worker.config import LOOPBACK, WorkerConfig

log = logging.getLogger(__name__)

# For `auto`, best first: what moves the pages of a pool in the host's memory, and on a GPU.
HOST_TRANSPORTS = (ShmTransport.name, TcpTransport.name)
DEVICE_TRANSPORTS = (CudaIpcTransport.name, NcclTransport.name, TcpTransport.name)


@dataclass(frozen=True, slots=True)
class Libraries:
    """Paths of a GPU machine's libraries; None: where the system has them. For tests."""

    cuda: str | None = None
    nccl: str | None = None


SYSTEM = Libraries()


def open_transports(
    config: WorkerConfig,
    identity: LinkIdentity,
    pool: PagePool,
    events: LinkEvents,
    libraries: Libraries = SYSTEM,
) -> Transports:
    """Listening, not yet started. Raises ConfigError if one that was named cannot be had, or none
    can."""
    device = None if pool.device == CPU else _device_of(pool, libraries)
    make: dict[str, Callable[[], StreamTransport]] = {
        CudaIpcTransport.name: lambda: CudaIpcTransport(identity, pool, events, _on_gpu(device)),
        NcclTransport.name: lambda: _nccl(config, identity, pool, events, device, libraries),
        ShmTransport.name: lambda: ShmTransport(identity, pool, events),
        TcpTransport.name: lambda: TcpTransport(config.data_host, identity, pool, events, device),
    }
    fitting = HOST_TRANSPORTS if device is None else DEVICE_TRANSPORTS
    opened: list[StreamTransport] = []
    for name in config.transport_names or fitting:
        try:
            opened.append(make[name]())
        except (OSError, LinkError) as error:
            if config.transport_names or name == TcpTransport.name:
                for transport in opened:
                    transport.close()
                raise ConfigError(_refusal(name, config, error)) from error
            # A sandbox may have no memory files, a machine no libnccl.
            log.info("no transport %s: %s", name, error)
    names = ", ".join(transport.name for transport in opened)
    log.info("KV of %s travels over %s", pool.device, names)
    return Transports([_advertised(config, transport) for transport in opened], events)


def _refusal(name: str, config: WorkerConfig, error: Exception) -> str:
    if name == TcpTransport.name and isinstance(error, OSError):
        return f"data host {config.data_host}: cannot listen: {error}"
    return f"no transport {name}: {error}; --transports auto takes what there is"


def _advertised(config: WorkerConfig, transport: StreamTransport) -> StreamTransport:
    """With the address that peers are told of it, if that is another."""
    if transport.name == TcpTransport.name and config.data_advertise is not None:
        address = config.data_advertise
        transport.endpoint = dataclasses.replace(transport.endpoint, address=address)
    return transport


def _device_of(pool: PagePool, libraries: Libraries) -> Device:
    """The GPU of a pool. Raises ConfigError: without its driver nothing moves its pages."""
    _, _, ordinal = pool.device.partition(":")
    try:
        return Driver.open(libraries.cuda).retain(int(ordinal or 0))
    except LinkError as error:
        raise ConfigError(f"KV is on {pool.device}, but {error}") from error


def _on_gpu(device: Device | None) -> Device:
    if device is None:
        raise LinkError("the KV is in the host's memory, not on a GPU")
    return device


def _nccl(
    config: WorkerConfig,
    identity: LinkIdentity,
    pool: PagePool,
    events: LinkEvents,
    device: Device | None,
    libraries: Libraries,
) -> NcclTransport:
    gpu = _on_gpu(device)
    nccl.set_environment(
        is_loopback=config.data_host in LOOPBACK,
        # Two ranks on one GPU are slow: meant only by who asks for it.
        is_device_shared=bool(config.transport_names),
    )
    library = Nccl.load(libraries.nccl)
    return NcclTransport(config.data_host, identity, pool, events, library, gpu)
