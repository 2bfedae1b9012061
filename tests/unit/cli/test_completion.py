"""Every command and flag can be completed, in each shell, from where it is declared."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dopd.cli import app, completion
from dopd.cli.completion import Leaf

pytest.importorskip("dopd._router", reason="the extension is not built")


@pytest.fixture(scope="module")
def leaves() -> list[Leaf]:
    return list(completion.leaves())


def test_every_command_is_there_and_has_help(leaves: list[Leaf]) -> None:
    paths = [leaf.path for leaf in leaves]
    assert {path for path in paths if " " not in path} == set(app.COMMANDS) | {"help"}
    assert {"config show", "config check", "config schema"} < set(paths)
    for leaf in leaves:
        assert leaf.help
        assert all(flag.names and flag.help for flag in leaf.flags), leaf
        assert leaf.path == "help" or any("--help" in flag.names for flag in leaf.flags), leaf


@pytest.mark.parametrize("shell", completion.SHELLS)
@pytest.mark.parametrize("flag", ["kv-memory", "burstiness", "watch", "origin", "page-size"])
def test_flags_of_rust_and_python_are_in_every_script(
    shell: str, flag: str, leaves: list[Leaf]
) -> None:
    assert flag in completion.SHELLS[shell](leaves)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("st", {"status"}),
        ("serve --log-f", {"--log-format"}),
        ("serve --log-format ", {"text", "json"}),
        ("serve --log-format = j", {"json"}),
        ("config ", {"show", "check", "schema"}),
        ("config show --ori", {"--origin"}),
        ("completion f", {"fish"}),
        ("simulate --model llama-7", {"llama-70b"}),
        ("help doc", {"doctor"}),
        ("bench --sp", {"--speed"}),
        ("status --watch ", set()),
        ("serve --port ", set()),
        ("replay pyproj", {"pyproject.toml"}),
    ],
)
def test_bash_offers(typed: str, offered: set[str], leaves: list[Leaf]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    words = ["dopd", *typed.split(" ")]
    given = " ".join(f"'{word}'" for word in words)
    script = completion.bash(leaves)
    asked = f'COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _dopd; echo "${{COMPREPLY[@]}}"'
    command = [bash, "--norc", "-uc", f"{script}\n{asked}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(("shell", "check"), [("zsh", "-n"), ("fish", "-n"), ("bash", "-n")])
def test_a_script_is_well_formed(shell: str, check: str, leaves: list[Leaf]) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    script = completion.SHELLS[shell](leaves)
    done = subprocess.run(
        [program, check, "/dev/stdin"], input=script, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_quotes_of_help_texts_do_not_end_a_word(shell: str, leaves: list[Leaf]) -> None:
    for line in completion.SHELLS[shell](leaves).splitlines():
        assert line.count("'") % 2 == 0, line
        assert "`" not in line, line
