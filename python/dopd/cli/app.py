"""Which commands there are, in which group, and how one is found and run."""

from __future__ import annotations

from dataclasses import dataclass

from dopd.cli import console
from dopd.errors import DopdError


@dataclass(frozen=True, slots=True)
class Command:
    """One line of `dopd --help`. `module` holds `run(argv) -> exit code`; imported when used."""

    name: str
    summary: str
    module: str


GROUPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    (
        "Serve",
        (
            Command("serve", "serve a model: a router and local workers in one go", "native"),
            Command("router", "a router alone; workers dial in", "native"),
            Command("worker", "one worker that joins a router", "worker"),
            Command("kernels", "compile a GPU's kernels ahead of its workers", "kernels"),
        ),
    ),
    (
        "Use",
        (
            Command("chat", "talk to a running server", "chat"),
            Command("complete", "complete one prompt, from an argument or stdin", "complete"),
            Command("bench", "load a running server and measure it", "bench"),
            Command("simulate", "what every policy is worth on a trace", "simulate"),
        ),
    ),
    (
        "Look",
        (
            Command("status", "workers, roles, load and pages of a running server", "status"),
            Command("explain", "why a request waited, and went where it went", "explain"),
            Command("doctor", "what is wrong with this machine, and the fix", "doctor"),
            Command("config", "show the settings, check a settings file", "native"),
            Command("replay", "decide a recorded event log again", "native"),
            Command("completion", "print the script that completes dopd in a shell", "completion"),
            Command("version", "versions of dopd and of what it stands on", "version"),
        ),
    ),
)
COMMANDS = {command.name: command for _, commands in GROUPS for command in commands}

FOOTER = """\
`dopd help COMMAND` tells a command's options and their defaults. Without a model or a GPU:

  dopd serve --mock
  dopd chat
"""


def help_text() -> str:
    """The whole of `dopd --help`."""
    lines = [
        "Serve a large language model with prefill and decode on separate workers.",
        "",
        "Usage: dopd COMMAND [OPTIONS]",
    ]
    for title, commands in GROUPS:
        lines += ["", f"{title}:"]
        lines += [f"  {command.name:<10} {command.summary}" for command in commands]
    return "\n".join([*lines, "", FOOTER.rstrip()])


def run(argv: list[str]) -> int:
    """Run `dopd ARGV...` and return its exit code."""
    console.set_up_streams()
    if not argv or argv[0] in {"-h", "--help", "help"}:
        if argv[:1] == ["help"] and len(argv) > 1:
            return run([*argv[1:], "--help"])
        console.say(help_text())
        return console.OK if argv else console.USAGE
    name = "version" if argv[0] in {"-V", "--version"} else argv[0]
    try:
        return _dispatch(name, argv)
    except DopdError as error:
        return console.fail(error)
    except KeyboardInterrupt:
        return console.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()


def _dispatch(name: str, argv: list[str]) -> int:
    command = COMMANDS.get(name)
    if command is None:
        raise _unknown(name)
    from importlib import import_module

    code: int = import_module(f"dopd.cli.{command.module}").run(argv)
    return code


def _unknown(name: str) -> console.CommandError:
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS, n=1)
    fix = f"dopd {close[0]}" if close else "dopd --help lists the commands"
    return console.CommandError(f"no command {name!r}", fix=fix, code=console.USAGE)


def _reader_left() -> int:
    """`dopd status | head`: end quietly, and keep the interpreter from flushing into the pipe."""
    import os
    import sys

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return console.FAILED
