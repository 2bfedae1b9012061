"""The hash that names a model; router and worker compute it alike and compare it at joining."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dopd.errors import ModelError
from dopd.weights import made_up

WHOLE_FILES = ("config.json", "tokenizer.json", "model.safetensors.index.json")
END_BYTES = 1 << 20


def model_hash(path: str | Path) -> bytes:
    """sha256 over a model's small files and the ends of its weight files, 32 bytes.

    path: a folder of safetensors, a .gguf file, or a folder with one .gguf file; or the name of a
    made-up model, whose hash is of its name and seed. For each of
    WHOLE_FILES that exists, in that order: name, 0x00, size as u64 LE, content. Then for each
    weight file, by name: name, 0x00, size, first MiB, last MiB (of a shorter file: its content
    twice). Ends, not all: a header with every tensor's place and shape is at one end, and hashing
    16 GB would cost a minute of every start.
    """
    if model := made_up.parse(path):
        return model.model_hash()
    path = Path(path)
    digest = hashlib.sha256()
    files = weight_files(path)
    if not files:
        raise ModelError(f"cannot read model {path}: no weight files there")
    try:
        for file in _small_files(path):
            content = file.read_bytes()
            digest.update(_entry(file, len(content)) + content)
        for file in files:
            size = file.stat().st_size
            digest.update(_entry(file, size))
            with file.open("rb") as stream:
                digest.update(stream.read(END_BYTES))
                stream.seek(max(0, size - END_BYTES))
                digest.update(stream.read(END_BYTES))
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror}") from error
    return digest.digest()


def weight_files(path: Path) -> list[Path]:
    """The weight files of a model by name: all *.safetensors of a folder, else all *.gguf."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.safetensors"), key=lambda file: file.name)
    return files or sorted(path.glob("*.gguf"), key=lambda file: file.name)


def _small_files(path: Path) -> list[Path]:
    if path.is_file():
        return []
    return [path / name for name in WHOLE_FILES if (path / name).is_file()]


def _entry(file: Path, size: int) -> bytes:
    return file.name.encode() + b"\0" + size.to_bytes(8, "little")
