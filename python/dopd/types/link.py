"""Messages of a data link between two workers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PoolHandle:
    """KV memory on a GPU, for other processes; see link.proto. Who opens it checks its shape."""

    device_uuid: bytes
    handle: bytes = field(repr=False)
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class LinkHello:
    """First frame of the dialling side of a data link. pool_handle: cuda_ipc only."""

    protocol: int
    worker: str
    incarnation: int
    layout_hash: int
    join_token: str = field(repr=False)
    pool_handle: PoolHandle | None = None


@dataclass(frozen=True, slots=True)
class LinkWelcome:
    """Answer of the listening side; `error` is empty if the link is up. nccl_id: nccl only."""

    worker: str
    incarnation: int
    generation: int
    error: str = ""
    nccl_id: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True)
class LinkBegin:
    """Source to destination: here is the ticket."""

    nonce: int


@dataclass(frozen=True, slots=True)
class LinkGo:
    """Destination to source: write into these pages, in this order, from the shipment's page
    `first` on; those before are there already."""

    nonce: int
    pages: list[int] = field(repr=False)
    first: int = 0


@dataclass(frozen=True, slots=True)
class LinkWrite:
    """Source to destination: `count` whole pages, from the shipment's page `first`.

    source_pages: shm, cuda_ipc: where they lie in the source's pool.
    """

    nonce: int
    first: int
    count: int
    source_pages: list[int] = field(repr=False, default_factory=list)


@dataclass(frozen=True, slots=True)
class LinkPulled:
    """Destination to source (not tcp): `count` more pages of the shipment were copied."""

    nonce: int
    count: int


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """Source to destination: the last word of a shipment. All but `nonce` counts only if `ok`."""

    nonce: int
    ok: bool
    pages: int = 0
    pos: int = 0
    tokens: list[int] = field(repr=False, default_factory=list)
    tokens_hash: int = 0
    checksum: int | None = None


LinkMessage = LinkHello | LinkWelcome | LinkBegin | LinkGo | LinkWrite | LinkPulled | LinkEnd
