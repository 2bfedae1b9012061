"""Log lines of a worker process: text for people, or one JSON object a line (--log-format json).

Fields of an object: timestamp, level, target, worker, message, and exception if there is one; the
first three and the message are named as the router names them. No prompt, no answer, at no level.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys

# Control characters steer terminals and end lines.
_STEERING = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}


def set_up(name: str, level: str, form: str, *, is_prefixed: bool = False) -> None:
    """One line an event on stderr; a traceback is more than one in text.

    is_prefixed: whoever reads stderr puts the name before each line, so text need not.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines(name) if form == "json" else TextLines("" if is_prefixed else name)
    )
    logging.basicConfig(handlers=[handler], level=level.upper())


class TextLines(logging.Formatter):
    """`12:34:56 prefill-0 INFO loading mock`, or without the name if it is empty."""

    def __init__(self, name: str) -> None:
        who = f"{name} " if name else ""
        super().__init__(f"%(asctime)s {who}%(levelname)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without its traceback."""
        return super().formatMessage(record).translate(_STEERING)


class JsonLines(logging.Formatter):
    """One object an event; `json` escapes what steers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        made = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "timestamp": made.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": "WARN" if record.levelname == "WARNING" else record.levelname,
            "target": record.name,
            "worker": self._name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)
