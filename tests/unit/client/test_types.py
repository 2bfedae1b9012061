"""What a type checker says about the client and about programs that use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sources
from tests.support.documents import blocks

TIMEOUT_S = 120
CHECKED = ("dopd/client", "dopd/__init__.py")
# What a caller's editor must know, and mistakes that it must find.
FACTS = """
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import dopd

client = dopd.Client()
assert_type(client.generate("x", max_tokens=1), dopd.Answer)
assert_type(client.generate([1, 2]).choices[0].token_ids, tuple[int, ...])
assert_type(client.stream_chat("x"), dopd.AnswerStream)
assert_type(client.stream_chat("x").text_stream(), Iterator[str])
for event in client.stream_generate("x"):
    if isinstance(event, dopd.Delta):
        assert_type(event.text, str)
assert_type(client.models(), list[dopd.Model])
client.chat([{"role": "user", "content": "x"}])


async def main(client: dopd.AsyncClient) -> None:
    assert_type(await client.chat("x"), dopd.Answer)
    async with client.stream_generate("x") as stream:
        assert_type(stream, dopd.AsyncAnswerStream)
        assert_type(stream.text_stream(), AsyncIterator[str])
        assert_type(await stream.answer(), dopd.Answer)
"""
MISTAKES = """
import dopd

client = dopd.Client()
client.generate("x", max_token=1)
client.generate("x", temperature="hot")
client.generate(["x"])
client.chat([{"role": "user"}])
client.generate("x").tokens
dopd.Cleint
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="pyright needs node")
@pytest.mark.timeout(TIMEOUT_S)
def test_pyright_in_strict_mode_accepts_what_is_right_and_finds_what_is_wrong(
    tmp_path: Path,
) -> None:
    for number, block in enumerate(blocks(sources.text("docs/guides/sdk.md"))):
        if block.language == "python":
            (tmp_path / f"guide_{number}.py").write_text(block.text)
    (tmp_path / "facts.py").write_text(FACTS)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    package = sources.REPO / "python"
    settings = {
        "typeCheckingMode": "strict",
        "include": [".", *(os.path.relpath(package / name, tmp_path) for name in CHECKED)],
        "extraPaths": [str(package)],
        "pythonVersion": "3.11",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("pyright")), "--pythonpath", sys.executable]
    command += ["--outputjson", "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] > 2 + len(
        list((package / "dopd/client").glob("*.py"))
    )
    found = [(Path(entry["file"]).name, entry) for entry in report["generalDiagnostics"]]
    wrong = [entry for name, entry in found if name != "mistakes.py"]
    assert not wrong, json.dumps(wrong, indent=1)
    lines = {entry["range"]["start"]["line"] for name, entry in found if name == "mistakes.py"}
    calls = [number for number, line in enumerate(MISTAKES.splitlines()) if "." in line]
    assert lines == set(calls) - {3}
