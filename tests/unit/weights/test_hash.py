"""The model hash, computed here a second time from its definition."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dopd.errors import ModelError
from dopd.weights.hash import END_BYTES, model_hash


def entry(name: str, content: bytes) -> bytes:
    return name.encode() + b"\x00" + len(content).to_bytes(8, "little")


def test_hash_of_a_folder(tmp_path: Path) -> None:
    config, index = b'{"a": 1}', b"{}"
    long = bytes(range(256)) * (END_BYTES // 256 * 2 + 3)
    files = {"b.safetensors": b"short", "a.safetensors": long, "config.json": config}
    for name, content in {
        **files,
        "model.safetensors.index.json": index,
        "notes.txt": b"x",
    }.items():
        (tmp_path / name).write_bytes(content)
    told = (
        entry("config.json", config) + config + entry("model.safetensors.index.json", index) + index
        + entry("a.safetensors", long) + long[:END_BYTES] + long[-END_BYTES:]
        + entry("b.safetensors", b"short") + b"short" + b"short"
    )  # fmt: skip
    assert model_hash(tmp_path) == hashlib.sha256(told).digest()


def test_hash_of_a_file_and_of_the_folder_that_holds_only_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    expected = hashlib.sha256(entry("m.gguf", b"GGUF") + b"GGUFGGUF").digest()
    assert model_hash(path) == model_hash(tmp_path) == expected


def test_any_byte_at_an_end_changes_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = bytearray(3 * END_BYTES)
    seen = set()
    for at in (None, 0, END_BYTES - 1, 2 * END_BYTES, 3 * END_BYTES - 1):
        changed = bytearray(content)
        if at is not None:
            changed[at] = 1
        path.write_bytes(changed)
        seen.add(model_hash(path))
    assert len(seen) == 5


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read model"):
        model_hash(tmp_path / "m.gguf")
