"""What the README tells a newcomer to paste works."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest

from dopd.cli.app import COMMANDS
from tests.support import sources
from tests.support.server import Server

DEFAULT = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README."""
    return re.findall(rf"```{language}\n(.*?)```", sources.text("README.md"), re.DOTALL)


@pytest.mark.model
@pytest.mark.timeout(180)
def test_the_python_lines_name_paris(smollm2: Server) -> None:
    [code] = blocks("python")
    assert DEFAULT in code
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code.replace(DEFAULT, smollm2.url), {})
    assert "Paris" in shown.getvalue()


@pytest.mark.model
@pytest.mark.timeout(180)
def test_the_curl_line_streams_paris(smollm2: Server) -> None:
    [line] = [block for block in blocks("console") if "curl" in block]
    found = re.search(r"-d '(.*)'", line, re.DOTALL)
    assert found is not None
    path = re.search(rf"{DEFAULT}(\S+)", line)
    assert path is not None
    body = json.loads(found[1]) | {"temperature": 0}
    events = [e for e in smollm2.events(path[1], body) if isinstance(e, dict)]
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
    assert "Paris" in text


def test_every_command_that_documents_name_exists() -> None:
    for name in sources.with_suffix(".md"):
        for command in re.findall(r"^\$ dopd (\w+)", sources.text(name), re.MULTILINE):
            assert command in COMMANDS, f"{name}: dopd {command}"


def test_every_make_target_that_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", sources.text("Makefile"), re.MULTILINE))
    for name in sources.with_suffix(".md"):
        used = set(re.findall(r"(?:\$ |`)make ([a-z-]+)", sources.text(name)))
        assert used <= targets, f"{name}: make {used - targets}"


def test_links_between_documents_lead_somewhere() -> None:
    for name in sources.with_suffix(".md"):
        folder = (sources.REPO / name).parent
        for link in re.findall(r"\]\(([^)#:]+)\)", sources.text(name)):
            assert (folder / link).exists(), f"{name}: {link}"
