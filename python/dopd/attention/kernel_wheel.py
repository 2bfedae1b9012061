"""Kernels as a wheel that FlashInfer takes for its own `flashinfer-jit-cache`. For `dopd kernels`.

FlashInfer looks for that package before it compiles anything, and loads what it finds there without
looking at nvcc, ninja or the age of files; of another version than its own it refuses it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "flashinfer_jit_cache"
FOLDER = f"{NAME}/kernels"
# The same kernels give the same file.
DATE = (1980, 1, 1, 0, 0, 0)

# FlashInfer 0.6 asks for the folder, 0.7 for providers.
MODULE = '''"""FlashInfer's kernels, compiled ahead by `dopd kernels`."""

import os
from dataclasses import dataclass

__version__ = {version!r}
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernels")


@dataclass(frozen=True)
class Provider:
    provider_id: str = "dopd"
    distribution: str = "flashinfer-jit-cache"
    version: str = __version__
    jit_cache_dir: str = _FOLDER
    cuda_architectures: frozenset = frozenset({architectures!r})
    modules: frozenset = frozenset({modules!r})


def get_jit_cache_dir():
    return _FOLDER


def get_jit_cache_providers():
    return (Provider(),)
'''
METADATA = """Metadata-Version: 2.1
Name: flashinfer-jit-cache
Version: {version}
Summary: FlashInfer's kernels for {architectures}, compiled ahead by dopd
Requires-Dist: flashinfer-python=={flashinfer}
"""
WHEEL = """Wheel-Version: 1.0
Generator: dopd
Root-Is-Purelib: false
Tag: {tag}
"""


def write(
    folder: Path,
    libraries: Mapping[str, Path],
    *,
    flashinfer: str,
    cuda: str,
    architectures: Sequence[str],
) -> Path:
    """Write the wheel and return its path.

    libraries: by the name that FlashInfer knows them by. flashinfer, cuda: versions. architectures:
    sm90a, as FlashInfer names them. A wheel that is there under this name is replaced.
    """
    version = f"{flashinfer}+cu{cuda.replace('.', '')}.{'.'.join(architectures)}"
    tag = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
    module = MODULE.format(
        version=version, architectures=sorted(architectures), modules=sorted(libraries)
    )
    told = METADATA.format(
        version=version, flashinfer=flashinfer, architectures=", ".join(architectures)
    )
    info = f"{NAME}-{version}.dist-info"
    contents = {f"{NAME}/__init__.py": module.encode()}
    contents |= {
        f"{FOLDER}/{name}/{name}.so": library.read_bytes()
        for name, library in sorted(libraries.items())
    }
    contents |= {
        f"{info}/METADATA": told.encode(),
        f"{info}/WHEEL": WHEEL.format(tag=tag).encode(),
    }
    contents[f"{info}/RECORD"] = _record(contents, f"{info}/RECORD").encode()
    target = folder / f"{NAME}-{version}-{tag}.whl"
    unfinished = target.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    os.replace(unfinished, target)
    return target


def _record(contents: Mapping[str, bytes], own: str) -> str:
    """Path, digest and length of every file, as the format of wheels wants it."""
    lines = []
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{own},,\n"])
