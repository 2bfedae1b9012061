"""The one reading of `--kv-memory`: settings, mock pool and real pool call it."""

from __future__ import annotations

import re

from dopd.errors import ConfigError

_UNITS = {
    "": 1,
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_MEMORY = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", re.ASCII)


def parse_memory(text: str) -> int:
    """Bytes of "512MiB", "1.5GiB", "2GB" or a plain number of bytes, above 0.

    Raises ConfigError. The number of digits is bounded, so no text becomes infinite.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ConfigError(f"kv-memory {text!r} is no size; write for example 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
