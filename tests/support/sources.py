"""The repository's own files, as git knows them."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
GENERATED = ("python/dopd/_gen/", "router/src/wire/gen/")


@cache
def files() -> tuple[str, ...]:
    """Tracked files and new ones that git does not ignore, generated ones left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    names = sorted(set(found.split("\0")) - {""})
    return tuple(n for n in names if not n.startswith(GENERATED) and (REPO / n).is_file())


def with_suffix(*suffixes: str) -> list[str]:
    """Names of all files that end so."""
    return [name for name in files() if name.endswith(suffixes)]


def text(name: str) -> str:
    """Content of the file `name`."""
    return (REPO / name).read_text()


def is_test(name: str) -> bool:
    """Whether `name` lies in a tests folder of either language, or is a Rust test module."""
    return (
        "tests/" in name or name.endswith(("/tests.rs", "_tests.rs")) or name.startswith("bench/")
    )
