"""The header of a GGUF file (version 2 and 3): metadata values and where each tensor lies. Reads
no weights.

The reader of the `gguf` package turns every vocabulary entry into arrays, 3 s for a vocabulary of
49,152; this one steps over long lists and takes 30 ms. Every count and length is checked against
the file before it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from dopd.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_TENSORS = 100_000
MAX_FIELDS = 10_000
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
# Longer lists (vocabulary, merges) are the router's business and are stepped over.
MAX_LIST_KEPT = 64

_FORMATS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

Value = int | float | bool | str | list["Value"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    shape is row-major ([out, in] of a matrix); offset counts from the file's start.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the weights. Lists longer than MAX_LIST_KEPT are left out of `fields`."""

    fields: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises ModelError if it is none, cut off, or of another version.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return _Reader(data).header()
    except (OSError, ValueError, struct.error, IndexError) as error:
        # struct.error: a read past the end. ValueError: an empty file, text that is no UTF-8.
        raise ModelError(f"{path} is no whole GGUF file: {error}") from error


class _Reader:
    """A cursor over the file's bytes; a read past the end raises struct.error."""

    def __init__(self, data: mmap) -> None:
        self.data = data
        self.at = 0

    def header(self) -> Header:
        if self.data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.integer("<I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, supported: 2 and 3, little-endian")
        num_tensors = self.bounded("tensors", MAX_TENSORS)
        fields: dict[str, Value] = {}
        for _ in range(self.bounded("fields", MAX_FIELDS)):
            name = self.text()
            value = self.value(self.integer("<I"))
            if value is not None:
                fields[name] = value
        infos = [self.tensor_info() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT:
            raise ValueError(f"its alignment is {alignment!r}, must be 1 to {MAX_ALIGNMENT}")
        start = -(-self.at // alignment) * alignment
        tensors = {
            info.name: TensorInfo(info.name, info.shape, info.type_id, start + info.offset)
            for info in infos
        }
        return Header(fields, tensors)

    def tensor_info(self) -> TensorInfo:
        name = self.text()
        num_dimensions = self.integer("<I")
        if num_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {num_dimensions} dimensions")
        # GGUF writes the fastest dimension first.
        shape = tuple(reversed([self.integer("<Q") for _ in range(num_dimensions)]))
        if math.prod(shape) > 1 << 48:
            raise ValueError(f"tensor {name} has shape {list(shape)}")
        return TensorInfo(name, shape, self.integer("<I"), self.integer("<Q"))

    def value(self, kind: int) -> Value | None:
        """One metadata value; None for a list that is stepped over."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.list()
        return self.scalar(_format(kind))

    def list(self) -> Value | None:
        kind, count = self.integer("<I"), self.integer("<Q")
        if kind == _ARRAY:
            raise ValueError("a list of lists in its metadata")
        if count <= MAX_LIST_KEPT:
            items = [self.value(kind) for _ in range(count)]
            return [item for item in items if item is not None]
        if kind != _STRING:
            self.skip(count * struct.calcsize(_format(kind)))
            return None
        if count * 8 > len(self.data):
            raise ValueError(f"a list of {count} texts in a file of {len(self.data)} bytes")
        for _ in range(count):
            self.skip(self.integer("<Q"))
        return None

    def text(self) -> str:
        length = self.integer("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode()

    def skip(self, num_bytes: int) -> None:
        if num_bytes > len(self.data) - self.at:
            raise ValueError(f"it ends inside its header, at byte {len(self.data)}")
        self.at += num_bytes

    def bounded(self, what: str, most: int) -> int:
        count = self.integer("<Q")
        if count > most:
            raise ValueError(f"it claims {count} {what}, at most {most} are read")
        return count

    def integer(self, layout: str) -> int:
        return int(self.scalar(layout))

    def scalar(self, layout: str) -> int | float | bool:
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        assert isinstance(value, int | float | bool)
        return value


def _format(kind: int) -> str:
    if kind not in _FORMATS:
        raise ValueError(f"a metadata value of unknown type {kind}")
    return _FORMATS[kind]
