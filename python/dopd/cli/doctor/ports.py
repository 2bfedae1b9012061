"""Who has a port of this machine, found without other programs."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from dopd.cli.doctor.facts import Port

LOOPBACK_TIMEOUT_S = 2.0
COMMAND_CHARS_MAX = 60
LISTENING = "0A"


def look(setting: str, flag: str, host: str, port: int) -> Port:
    """Bind the port for a moment; if that fails, say who has it."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the router's: a port whose last connection just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Port(setting, flag, shown, error=error.strerror or str(error))
            holder, is_dopd = _holder(port)
            return Port(setting, flag, shown, holder=holder, is_dopd=is_dopd)
    return Port(setting, flag, shown)


def loopback_error() -> str | None:
    """Why a connection from 127.0.0.1 to itself fails; None if it does not."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(LOOPBACK_TIMEOUT_S)
            with socket.create_connection(server.getsockname(), LOOPBACK_TIMEOUT_S) as client:
                peer, _ = server.accept()
                with peer:
                    client.sendall(b"x")
                    peer.settimeout(LOOPBACK_TIMEOUT_S)
                    if peer.recv(1) != b"x":
                        return "what is sent does not arrive"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _holder(port: int) -> tuple[str, bool]:
    """Command and pid of the process that listens on `port`; "" if it cannot be seen."""
    inodes = _listening_inodes(port)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for link in (entry / "fd").iterdir():
                if os.readlink(link) in inodes:
                    return _describe(entry)
    return "", False


def _listening_inodes(port: int) -> set[str]:
    """Names under /proc/PID/fd of the sockets that listen on `port`."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _describe(entry: Path) -> tuple[str, bool]:
    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    names = [Path(word).name for word in words[:3]]
    is_dopd = any(name in ("dopd", "dopd-router") for name in names)
    command = " ".join([Path(words[0]).name, *words[1:]]) if words else entry.name
    if len(command) > COMMAND_CHARS_MAX:
        command = command[: COMMAND_CHARS_MAX - 3] + "..."
    return f"{command} (pid {entry.name})", is_dopd
