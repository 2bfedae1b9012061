"""The end of a stream whose copies touch pages: until it has come, nobody may use them."""

from __future__ import annotations

import logging
import time

from dopd.errors import LinkError
from dopd.transfer.cuda import Stream

log = logging.getLogger(__name__)

# The longest copy of a healthy device, many times over. One that takes longer is broken.
REST_S = 10.0
# After an error of the question itself.
RETRY_S = 0.01


def come_to_rest(stream: Stream) -> bool:
    """Wait until nothing is under way on a stream, and say whether it came to that. Never raises.

    An error is no answer: what it tells of may be of other work, or of the question. So it is asked
    again, and where errors stay, nothing is taken for certain: the device, and with it this worker,
    is at its end.
    """
    deadline = time.monotonic() + REST_S
    is_told = False
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            return stream.synchronise(left_s)
        except LinkError as error:
            if not is_told:
                log.warning("waiting for a device's copies: %s", error)
            is_told = True
            time.sleep(min(RETRY_S, left_s))
    return False
