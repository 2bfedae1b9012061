"""What transports between processes of one user on one machine share: an abstract Unix socket."""

from __future__ import annotations

import os
import secrets
import socket
import struct

from dopd.errors import LinkRefusedError
from dopd.kv.base import PagePool
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.host import host_id
from dopd.transfer.stream import HANDSHAKES_MAX, StreamTransport
from dopd.types import Endpoint

# struct ucred: pid, uid, gid.
CREDENTIALS = struct.Struct("iII")


class LocalTransport(StreamTransport):
    """See `StreamTransport`. Memory is shown to nobody but ourselves: the user is asked first."""

    def __init__(self, identity: LinkIdentity, pool: PagePool, events: LinkEvents) -> None:
        """Listens on a name of its own. Raises OSError."""
        # Abstract: it is gone with the process, and others cannot be in its place before it is.
        name = f"dopd-{secrets.token_hex(16)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(abstract(name))
            listener.listen(HANDSHAKES_MAX)
            endpoint = Endpoint(self.name, name, host_id())
        except OSError:
            listener.close()
            raise
        super().__init__(listener, endpoint, identity, pool, events)

    def _open(self, address: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Waits for nothing: a full backlog is EAGAIN, and asked again.
            sock.setblocking(False)
            sock.connect(abstract(address))
        except BlockingIOError:
            sock.close()
            raise
        except (OSError, ValueError) as error:
            sock.close()
            # Nobody listens, or a sandbox forbids it: other ways may be open.
            raise LinkRefusedError(f"{address!r}: {error}") from error
        return sock

    def _refusal_of_user(self, sock: socket.socket) -> str:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, uid, _ = CREDENTIALS.unpack(data)
        if uid != os.geteuid():
            return f"process {pid} is of user {uid}, we are of {os.geteuid()}"
        return ""


def abstract(name: str) -> str:
    """The address of an abstract Unix socket."""
    return "\0" + name
