"""completion: the script that lets a shell complete dopd's commands and flags.

Everything comes from where it is declared: the list of commands, the parser of each Python command,
and the router's own flags as the extension tells them. Nothing is repeated here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dopd.cli import app, console

PATH_METAVARS = ("FILE", "PATH", "MODEL", "OUT", "TRACE")
HELP_CHARS_MAX = 70
SHELL_SIGNS = str.maketrans("[]", "()", "'\"`$\\")
INSTALL = """\
bash:  dopd completion bash > ~/.local/share/bash-completion/completions/dopd
zsh:   dopd completion zsh > ~/.zfunc/_dopd     (with fpath+=~/.zfunc before compinit)
fish:  dopd completion fish > ~/.config/fish/completions/dopd.fish
Or for this shell only: source <(dopd completion bash)
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag under all its names. `words`: the only values; `is_path`: a file or a folder."""

    names: tuple[str, ...]
    help: str
    takes_value: bool = False
    words: tuple[str, ...] = ()
    is_path: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """A command as it is typed (`config show`), its flags, and what its words are."""

    path: str
    help: str
    flags: tuple[Flag, ...] = ()
    words: tuple[str, ...] = ()
    is_path: bool = False


def run(argv: list[str]) -> int:
    """Print the script of one shell."""
    args = parser().parse_args(argv[1:])
    console.say(SHELLS[args.shell](list(leaves())).rstrip())
    return console.OK


def parser() -> argparse.ArgumentParser:
    """The options of `dopd completion`."""
    made = console.parser("completion", "Print the script that completes dopd in a shell.")
    made.epilog = INSTALL
    made.add_argument("shell", choices=list(SHELLS), help="which shell")
    return made


def leaves() -> Iterator[Leaf]:
    """Every command, with its flags."""
    native: dict[str, Any] = {}
    try:
        from dopd import _router
    except ImportError:
        # Without the extension those commands do not run either.
        pass
    else:
        native = {found["name"]: found for found in json.loads(_router.commands())["commands"]}
    yield Leaf("help", "help of a command", words=tuple(app.COMMANDS))
    for command in app.COMMANDS.values():
        if command.module != "native":
            made = import_module(f"dopd.cli.{command.module}").parser()
            yield _of_argparse(command.name, command.summary, made)
        elif command.name in native:
            yield from _of_clap("", native[command.name])


def _of_argparse(name: str, summary: str, made: argparse.ArgumentParser) -> Leaf:
    flags: list[Flag] = []
    words: tuple[str, ...] = ()
    is_path = False
    for action in made._actions:
        choices = tuple(map(str, action.choices or ()))
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if action.option_strings:
            text = (action.help or "").replace("%(default)s", str(action.default))
            flags.append(
                Flag(
                    tuple(action.option_strings),
                    text,
                    action.nargs != 0,
                    choices,
                    metavar in PATH_METAVARS,
                )
            )
        else:
            words, is_path = words + choices, is_path or metavar in PATH_METAVARS
    return Leaf(name, summary, tuple(flags), words, is_path)


def _of_clap(parent: str, found: dict[str, Any]) -> Iterator[Leaf]:
    path = f"{parent} {found['name']}".strip()
    flags = [
        Flag(
            tuple(dash + name for dash, name in (("-", f["short"]), ("--", f["long"])) if name),
            f["help"],
            f["value"] is not None,
            tuple(f["words"]),
            f["is_path"],
        )
        for f in found["flags"]
    ]
    flags.append(Flag(("-h", "--help"), "print help"))
    is_path = any(word["is_path"] for word in found["positionals"])
    below = tuple(command["name"] for command in found["commands"])
    yield Leaf(path, found["help"], tuple(flags), below, is_path)
    for command in found["commands"]:
        yield from _of_clap(path, command)


def _short(text: str) -> str:
    """One line of help, without what shells would read as their own."""
    text = " ".join(text.split()).translate(SHELL_SIGNS)
    return text if len(text) <= HELP_CHARS_MAX else text[: HELP_CHARS_MAX - 3] + "..."


def bash(found: list[Leaf]) -> str:
    """Completion for bash 4 and later."""
    names = " ".join(leaf.path for leaf in found if " " not in leaf.path)
    lines = [
        "# dopd completion bash",
        "_dopd() {",
        '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
        '    local path="${COMP_WORDS[1]}" flags="" words="" files=""',
        "    COMPREPLY=()",
        "    if (( COMP_CWORD == 1 )); then",
        f'        COMPREPLY=( $(compgen -W "{names} --help --version" -- "$cur") )',
        "        return",
        "    fi",
        "    if (( COMP_CWORD > 2 )) && [[ $path == config ]]; then",
        '        path="$path ${COMP_WORDS[2]}"',
        "    fi",
        '    [[ $cur == "=" ]] && cur=""',
        '    [[ $prev == "=" ]] && prev="${COMP_WORDS[COMP_CWORD-2]}"',
        '    case "$path $prev" in',
    ]
    for leaf in found:
        for flag in leaf.flags:
            patterns = "|".join(f'"{leaf.path} {name}"' for name in flag.names)
            if flag.words:
                words = " ".join(flag.words)
                lines.append(f'        {patterns}) COMPREPLY=( $(compgen -W "{words}" -- "$cur") )')
                lines.append("            return ;;")
            elif flag.is_path:
                lines.append(
                    f'        {patterns}) COMPREPLY=( $(compgen -f -- "$cur") ); return ;;'
                )
            elif flag.takes_value:
                lines.append(f"        {patterns}) return ;;")
    lines += ["    esac", '    case "$path" in']
    for leaf in found:
        flags = " ".join(name for flag in leaf.flags for name in flag.names)
        files = "yes" if leaf.is_path else ""
        words = " ".join(leaf.words)
        lines.append(f'        "{leaf.path}") flags="{flags}" words="{words}" files="{files}" ;;')
    lines += [
        "    esac",
        "    if [[ $cur == -* ]]; then",
        '        COMPREPLY=( $(compgen -W "$flags" -- "$cur") )',
        "        return",
        "    fi",
        '    COMPREPLY=( $(compgen -W "$words" -- "$cur") )',
        '    if [[ -n $files ]]; then COMPREPLY+=( $(compgen -f -- "$cur") ); fi',
        "}",
        "complete -o filenames -F _dopd dopd",
    ]
    return "\n".join(lines)


def zsh(found: list[Leaf]) -> str:
    """Completion for zsh, with a line of help beside each flag."""
    top = [leaf for leaf in found if " " not in leaf.path]
    lines = ["#compdef dopd", "_dopd() {", "    local -a commands", "    commands=("]
    lines += [f"        '{leaf.path}:{_short(leaf.help).replace(':', ',')}'" for leaf in top]
    lines += [
        "    )",
        "    if (( CURRENT == 2 )); then _describe command commands; return; fi",
        "    shift words; (( CURRENT-- ))",
        '    local what="${words[1]}"',
        "    if (( CURRENT > 2 )) && [[ $what == config ]]; then",
        "        shift words; (( CURRENT-- ))",
        '        what="config ${words[1]}"',
        "    fi",
        '    case "$what" in',
    ]
    for leaf in found:
        specs = [spec for flag in leaf.flags for spec in _zsh_flag(flag)]
        if leaf.words:
            specs.append(f"'*:word:({' '.join(leaf.words)})'")
        elif leaf.is_path:
            specs.append("'*:file:_files'")
        body = " \\\n            ".join(["_arguments", *specs])
        lines.append(f"        '{leaf.path}') {body} ;;")
    return "\n".join([*lines, "    esac", "}", '_dopd "$@"'])


def _zsh_flag(flag: Flag) -> Iterator[str]:
    value = ""
    if flag.takes_value:
        action = f"({' '.join(flag.words)})" if flag.words else "_files" if flag.is_path else " "
        value = f":value:{action}"
    for name in flag.names:
        equals = "=" if flag.takes_value and name.startswith("--") else ""
        yield f"'*{name}{equals}[{_short(flag.help)}]{value}'"


def fish(found: list[Leaf]) -> str:
    """Completion for fish, with a line of help beside each flag."""
    lines = ["# dopd completion fish", "complete -c dopd -f"]
    for leaf in found:
        words = leaf.path.split()
        if len(words) == 1:
            summary = f"-a {leaf.path} -d '{_short(leaf.help)}'"
            lines.append(f"complete -c dopd -n __fish_use_subcommand {summary}")
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
        if leaf.words:
            lines.append(f"complete -c dopd -n '{seen}' -a '{' '.join(leaf.words)}'")
        if leaf.is_path:
            lines.append(f"complete -c dopd -n '{seen}' -F")
        lines += [f"complete -c dopd -n '{seen}' {_fish_flag(flag)}" for flag in leaf.flags]
    return "\n".join(lines)


def _fish_flag(flag: Flag) -> str:
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names]
    if flag.words:
        parts.append(f"-x -a '{' '.join(flag.words)}'")
    elif flag.is_path:
        parts.append("-r -F")
    elif flag.takes_value:
        parts.append("-x")
    return " ".join([*parts, f"-d '{_short(flag.help)}'"])


SHELLS: dict[str, Callable[[list[Leaf]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
