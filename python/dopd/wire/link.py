"""Messages of a data link. Called by `transfer`; what comes in is checked for shape here."""

from __future__ import annotations

import hashlib

from google.protobuf.message import DecodeError

from dopd._gen.dopd.worker.v1 import link_pb2 as pb
from dopd.errors import LinkError
from dopd.types import (
    KvGeometry,
    LinkBegin,
    LinkEnd,
    LinkGo,
    LinkHello,
    LinkMessage,
    LinkPulled,
    LinkWelcome,
    LinkWrite,
    PoolHandle,
)


def layout_hash(kv: KvGeometry) -> int:
    """What both ends of a data link compare (link.proto, LinkHello)."""
    text = (
        f"{kv.model_hash.hex()}|{kv.dtype}|{kv.page_size}|{kv.num_layers}|{kv.num_kv_heads}|"
        f"{kv.head_dim}|{kv.layout}|{kv.tensor_parallel}|{kv.page_bytes}"
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def encode_link(message: LinkMessage) -> bytes:
    """One message of a data link, without its frame."""
    match message:
        case LinkWrite(nonce, first, count, source_pages):
            write = pb.Write(nonce=nonce, first=first, count=count, source_pages=source_pages)
            frame = pb.LinkFrame(write=write)
        case LinkPulled(nonce, count):
            frame = pb.LinkFrame(pulled=pb.Pulled(nonce=nonce, count=count))
        case LinkBegin(nonce):
            frame = pb.LinkFrame(begin=pb.Begin(nonce=nonce))
        case LinkGo(nonce, pages, first):
            frame = pb.LinkFrame(go=pb.Go(nonce=nonce, pages=pages, first=first))
        case LinkEnd(nonce, ok, pages_written, pos, tokens, tokens_hash, checksum):
            frame = pb.LinkFrame(
                end=pb.End(
                    nonce=nonce,
                    ok=ok,
                    pages=pages_written,
                    pos=pos,
                    tokens=tokens,
                    tokens_hash=tokens_hash,
                    checksum=checksum,
                )
            )
        case LinkHello(protocol, worker, incarnation, layout, token, pool):
            frame = pb.LinkFrame(
                hello=pb.LinkHello(
                    protocol=protocol,
                    worker=worker,
                    incarnation=incarnation,
                    layout_hash=layout,
                    join_token=token,
                    pool_handle=_pool_handle(pool),
                )
            )
        case LinkWelcome(worker, incarnation, generation, error, nccl_id):
            frame = pb.LinkFrame(
                welcome=pb.LinkWelcome(
                    worker=worker,
                    incarnation=incarnation,
                    generation=generation,
                    error=error,
                    nccl_id=nccl_id,
                )
            )
    return frame.SerializeToString()


def _pool_handle(pool: PoolHandle | None) -> pb.PoolHandle | None:
    if pool is None:
        return None
    return pb.PoolHandle(
        device_uuid=pool.device_uuid,
        handle=pool.handle,
        offset=pool.offset,
        num_bytes=pool.num_bytes,
    )


def decode_link(data: bytes | bytearray | memoryview) -> LinkMessage:
    """One message of a data link. Raises LinkError if it is malformed."""
    try:
        frame = pb.LinkFrame.FromString(bytes(data))
    except DecodeError as error:
        raise LinkError(f"malformed frame of {len(data)} bytes") from error
    match frame.WhichOneof("kind"):
        case "write":
            write = frame.write
            return LinkWrite(write.nonce, write.first, write.count, list(write.source_pages))
        case "pulled":
            return LinkPulled(frame.pulled.nonce, frame.pulled.count)
        case "begin":
            return LinkBegin(frame.begin.nonce)
        case "go":
            return LinkGo(frame.go.nonce, list(frame.go.pages), frame.go.first)
        case "end":
            end = frame.end
            checksum = end.checksum if end.HasField("checksum") else None
            tokens = list(end.tokens)
            return LinkEnd(end.nonce, end.ok, end.pages, end.pos, tokens, end.tokens_hash, checksum)
        case "hello":
            return _hello(frame.hello)
        case "welcome":
            it = frame.welcome
            return LinkWelcome(it.worker, it.incarnation, it.generation, it.error, it.nccl_id)
    raise LinkError("frame without a message")


def _hello(it: pb.LinkHello) -> LinkHello:
    pool = None
    if it.HasField("pool_handle"):
        own = it.pool_handle
        pool = PoolHandle(own.device_uuid, own.handle, own.offset, own.num_bytes)
    return LinkHello(it.protocol, it.worker, it.incarnation, it.layout_hash, it.join_token, pool)
