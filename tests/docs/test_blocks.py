"""Every command that README and docs show works as it stands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sources
from tests.support.documents import blocks

# Generated pages show what commands print; the SDK's guide is run by its own tests.
NOT_HERE = ("docs/reference/",)
LEFT_OUT_MAX = 8

DOCUMENTS = [
    name
    for name in sources.with_suffix(".md")
    if (name == "README.md" or name.startswith("docs/"))
    and not name.startswith(NOT_HERE)
    and any(block.language in {"console", "python"} for block in blocks(sources.text(name)))
]


def own_network() -> bool:
    """Whether this machine lets a test have a network of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    return (
        subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.skipif(not own_network(), reason="no network namespaces here")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_reader_can_do_what_it_says(name: str) -> None:
    words = ["unshare", "-rn", sys.executable, "-m", "tests.support.documents", name]
    done = subprocess.run(words, cwd=sources.REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout.strip())


@pytest.mark.skipif(not own_network(), reason="no network namespaces here")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```console\n$ dopd nosuch\n```\n", "exit code 2 of: dopd nosuch"),
        ("```console\n$ dopd serve ./nosuch\n```\n", "did not answer"),
        ("```python\nraise SystemExit(3)\n```\n", "exit code 3"),
    ],
)
def test_a_document_that_is_wrong_fails(text: str, told: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    words = ["unshare", "-rn", sys.executable, "-m", "tests.support.documents", str(page)]
    done = subprocess.run(words, cwd=sources.REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert told in done.stderr


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    left_out = [
        (name, block.word)
        for name in DOCUMENTS
        for block in blocks(sources.text(name))
        if block.mark == "not run"
    ]
    assert len(left_out) <= LEFT_OUT_MAX, left_out
    assert all(word and len(word) > 8 for _, word in left_out), left_out
