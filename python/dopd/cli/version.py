"""version: what is installed, for a bug report."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata

from dopd import __version__
from dopd.cli import console

SHOWN = ("grpcio", "protobuf", "torch", "flashinfer-python", "safetensors", "gguf")


def run(argv: list[str]) -> int:
    """Print versions, one a line, or one JSON document."""
    args = parser().parse_args(argv[1:])
    found = versions()
    if args.json:
        console.say(json.dumps(found))
    else:
        console.say("\n".join(f"{name} {version or '-'}" for name, version in found.items()))
    return console.OK


def parser() -> argparse.ArgumentParser:
    """The options of `dopd version`."""
    made = console.parser("version", "What is installed, for a bug report.")
    made.add_argument("--json", action="store_true", help="one JSON document")
    return made


def versions() -> dict[str, str | None]:
    """Version by name; None for what is not installed."""
    found: dict[str, str | None] = {"dopd": __version__, "python": platform.python_version()}
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    for name in SHOWN:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
