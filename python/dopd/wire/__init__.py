"""Between protobuf and dopd's own records. The one importer of generated code in the worker."""

from dopd.wire.link import decode_link, encode_link, layout_hash
from dopd.wire.stream import (
    ATTACH_METHOD,
    AttachRequest,
    AttachResponse,
    attach_stream,
    command,
    geometry,
    grant_message,
    hello,
    report,
    response,
)

__all__ = [
    "ATTACH_METHOD",
    "AttachRequest",
    "AttachResponse",
    "attach_stream",
    "command",
    "decode_link",
    "encode_link",
    "geometry",
    "grant_message",
    "hello",
    "layout_hash",
    "report",
    "response",
]
