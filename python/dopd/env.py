"""Every environment variable that Python reads or sets. Nothing else touches os.environ."""

from __future__ import annotations

import os


def get(name: str) -> str | None:
    """Value of DOPD_<name>, or None if unset or empty."""
    return os.environ.get(f"DOPD_{name}") or None


def given(name: str) -> str | None:
    """Value of a variable that is not dopd's own, empty or not; None if unset."""
    return os.environ.get(name)


def foreign(name: str) -> str | None:
    """Value of a variable that is not dopd's own, or None if unset or empty."""
    return os.environ.get(name) or None


def set_foreign(name: str, value: str) -> None:
    """Set a variable for a library that reads its own, unless the user has set it."""
    if not foreign(name):
        os.environ[name] = value
