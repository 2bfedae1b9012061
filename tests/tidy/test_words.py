"""What may not stand in the repository: leftovers, this machine's paths, registries, open binds."""

from __future__ import annotations

import re

import pytest

from tests.support import sources

# Each word is written so that this file does not contain it.
RULES = {
    "leftover marker": re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b"),
    "path of one machine": re.compile(r"(?<![\w.])/(?:wo" r"rk|ro" r"ot|ho" r"me)/\w"),
    "host of a registry": re.compile(
        r"py"
        r"pi\.org|pythonhos"
        r"ted|crates"
        r"\.io|proxy\.go"
        r"lang|npm"
        r"js\.org|maven"
        r"\.org"
    ),
}
# Written by cargo, which names the registry of every crate.
TOOL_MADE = ("Cargo.lock",)
BINDS_EVERYWHERE = re.compile(
    r"0\.0\." r"0\.0|\[" r"::\]|UNSPECI" r"FIED\b.*Addr|Addr.*UNSPECI" r"FIED\b"
)


@pytest.mark.parametrize("rule", RULES)
def test_no_file_contains_a(rule: str) -> None:
    pattern = RULES[rule]
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in sources.files()
        if name not in TOOL_MADE and not name.endswith((".bin", ".png", ".gguf", ".gz"))
        for number, line in enumerate(sources.text(name).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_product_code_never_binds_every_interface_by_itself() -> None:
    found = []
    for name in sources.with_suffix(".py", ".rs"):
        if sources.is_test(name):
            continue
        # Unit tests of Rust stand at the end of their file.
        product = sources.text(name).split("#[cfg(test)]", 1)[0]
        found += [
            f"{name}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(product.splitlines(), 1)
            if BINDS_EVERYWHERE.search(line)
        ]
    assert not found, "\n".join(found)


def test_lock_files_pin_every_package_with_a_hash() -> None:
    for name in sources.with_suffix(".lock"):
        if not name.startswith("requirements"):
            continue
        entries = re.split(r"\n(?=\w)", sources.text(name).strip())
        loose = [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry]
        assert not loose, f"{name}: {loose}"
