"""A network that loses packets, with a fleet around it: `python -m tests.support.faults.lossy`.

Run by tests/faults/test_loss.py inside of a network namespace of its own. A TUN device sends each
packet back with its addresses exchanged, or drops it: whoever dials FAR reaches HERE, over the
kernel's own TCP with its retransmissions. Workers reach the router, and each other's pages, so.
Prints a JSON object a share of loss: how the traffic went.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.support.documents import IFF_RUNNING, IFF_UP, SIOCSIFFLAGS, loopback_up
from tests.support.faults.fleet import Fleet, fleet
from tests.support.faults.proxy import Proxy
from tests.support.faults.traffic import Ask, Verdict

HERE, FAR = "10.99.0.1", "10.99.0.2"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
SIOCSIFADDR, SIOCSIFNETMASK = 0x8916, 0x891C
PACKET_BYTES_MAX = 65536
# Where the two addresses of an IPv4 packet are.
SOURCE, DESTINATION = slice(12, 16), slice(16, 20)
ANSWERS, CLIENTS, TOKENS = 48, 16, 60


class Lossy:
    """The device. loss: share of packets that are dropped. dropped: how many were."""

    def __init__(self, seed: int) -> None:
        self.loss = 0.0
        self.dropped = 0
        self._rng = random.Random(seed)
        self._file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        name = b"lossy"
        fcntl.ioctl(self._file, TUNSETIFF, struct.pack("16sH22x", name, IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for what, address in ((SIOCSIFADDR, HERE), (SIOCSIFNETMASK, "255.255.255.0")):
                inet = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(control, what, struct.pack("16s16s8x", name, inet))
            flags = struct.pack("16sh22x", name, IFF_UP | IFF_RUNNING)
            fcntl.ioctl(control, SIOCSIFFLAGS, flags)
        threading.Thread(target=self._run, name="lossy", daemon=True).start()

    def _run(self) -> None:
        while True:
            select.select([self._file], [], [])
            packet = bytearray(os.read(self._file, PACKET_BYTES_MAX))
            if packet[0] >> 4 != 4:
                continue
            if self._rng.random() < self.loss:
                self.dropped += 1
                continue
            # The sum over both addresses stays as it is, and so do all checksums.
            packet[SOURCE], packet[DESTINATION] = packet[DESTINATION], packet[SOURCE]
            os.write(self._file, packet)


def behind(proxy: Proxy) -> Proxy:
    """Lead a proxy's connections over the device; the proxy at the other end of it."""
    end = Proxy(proxy.upstream, host=HERE)
    proxy.upstream = f"{FAR}:{end.address.rpartition(':')[2]}"
    return end


def measure(one: Fleet, lossy: Lossy, loss: float) -> dict[str, object]:
    """Traffic at this share of loss."""
    lossy.loss, lossy.dropped = loss, 0
    rng = random.Random(5)
    asks = [
        Ask(tuple(rng.randrange(256) for _ in range(rng.randint(1, 200))), TOKENS, seed=k)
        for k in range(ANSWERS)
    ]
    before = one.router.status()
    begun = time.monotonic()
    with one.ask(*asks, clients=CLIENTS) as traffic:
        results = traffic.finish()
    seconds = time.monotonic() - begun
    lossy.loss = 0.0
    after = one.settled()
    return {
        "loss": loss,
        "right": len(results.of(Verdict.RIGHT)),
        "failed": [str(o) for o in results.all if o.verdict is not Verdict.RIGHT],
        "tokens_per_s": ANSWERS * TOKENS / seconds,
        "dropped": lossy.dropped,
        "replays": after["replays_total"] - before["replays_total"],
        "handoffs": after["handoffs_by"]["arrived"] - before["handoffs_by"]["arrived"],
    }


def main() -> int:
    """See the module."""
    loopback_up()
    lossy = Lossy(seed=1)
    with tempfile.TemporaryDirectory(prefix="dopd-loss-") as folder, fleet(Path(folder)) as one:
        ends = []
        for node in one.nodes.values():
            assert node.data is not None
            ends += [behind(node.join), behind(node.data)]
            node.join.reset()
            node.data.reset()
        one.settled()
        for loss in (0.0, 0.01, 0.05):
            print(json.dumps(measure(one, lossy, loss)), flush=True)
        for end in ends:
            end.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
