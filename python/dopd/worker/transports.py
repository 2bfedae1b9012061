"""Opens the transports that the settings ask for, as far as this machine has them."""

from __future__ import annotations

import dataclasses
import logging

from dopd.errors import ConfigError, LinkError
from dopd.kv.base import PagePool
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.pairing import Transports
from dopd.transfer.shm import ShmTransport
from dopd.transfer.stream import StreamTransport
from dopd.transfer.tcp import TcpTransport
from dopd.worker.config import WorkerConfig

log = logging.getLogger(__name__)


def open_transports(
    config: WorkerConfig, identity: LinkIdentity, pool: PagePool, events: LinkEvents
) -> Transports:
    """Listening, not yet started. Raises ConfigError if none can be had."""
    opened: list[StreamTransport] = []
    errors = []
    for name in config.transport_names:
        try:
            if name == ShmTransport.name:
                opened.append(ShmTransport(identity, pool, events))
            else:
                opened.append(_tcp(config, identity, pool, events))
        except (OSError, LinkError) as error:
            # A sandbox may have no memory files; the data host is what the user named.
            if name == TcpTransport.name:
                raise ConfigError(
                    f"data host {config.data_host}: cannot listen: {error}"
                ) from error
            log.info("no transport %s: %s", name, error)
            errors.append(f"{name}: {error}")
    if not opened:
        raise ConfigError(f"no transport is left of {config.transports}: {'; '.join(errors)}")
    return Transports(opened, events)


def _tcp(
    config: WorkerConfig, identity: LinkIdentity, pool: PagePool, events: LinkEvents
) -> TcpTransport:
    tcp = TcpTransport(config.data_host, identity, pool, events)
    if config.data_advertise is not None:
        tcp.endpoint = dataclasses.replace(tcp.endpoint, address=config.data_advertise)
    return tcp
