"""chat: talk to a running server from the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dopd.cli import console, options
from dopd.cli.answer import Answer, note_faintly
from dopd.errors import DopdError

INTRO = "{model} at {url}. /help lists the commands; Ctrl-C ends an answer, Ctrl-D the talk."
COMMANDS = {
    "/reset": "forget the talk, keep the system message",
    "/system": "/system TEXT sets the system message and forgets the talk",
    "/save": "/save FILE writes the talk as JSON",
    "/help": "this list",
    "/quit": "end; so does Ctrl-D",
}
TURNS_MAX = 1_000


def run(argv: list[str]) -> int:
    """Read prompts from stdin, one a line, and stream the answers until the input ends."""
    args = parser().parse_args(argv[1:])
    server = options.server(args)
    model = args.model or server.served_model()
    if sys.stdin.isatty():
        console.note(INTRO.format(model=model, url=args.url))
        import readline  # noqa: F401  # gives input() history and editing
    talk = Talk(args, model)
    for _ in range(TURNS_MAX):
        line = read_line()
        if line is None:
            return console.OK
        if line == "/quit":
            return console.OK
        if line.startswith("/"):
            talk.command(line)
        elif line:
            talk.turn(line)
    raise console.CommandError(f"the talk has {TURNS_MAX} turns", fix="dopd chat starts a new one")


def read_line() -> str | None:
    """What was typed; None: the input has ended."""
    is_typed = sys.stdin.isatty()
    try:
        return input("> " if is_typed else "").strip()
    except UnicodeDecodeError as error:
        message = "the prompt on stdin is not text in the encoding of the terminal"
        raise console.CommandError(message, code=console.USAGE) from error
    except KeyboardInterrupt:
        # Pressed as the answer ended, or to drop a line: no reason to lose the talk.
        if not is_typed:
            raise
        console.note("")
        return ""
    except EOFError:
        if is_typed:
            console.note("")
        return None


def parser() -> argparse.ArgumentParser:
    """The options of `dopd chat`."""
    made = console.parser("chat", "Talk to a running server; prompts are read from stdin.")
    made.epilog = "in the talk:\n" + commands_text()
    made.add_argument("--model", help="name of the model (default: the one served)")
    made.add_argument("--system", metavar="TEXT", help="system message")
    options.add_server(made)
    options.add_sampling(made)
    return made


def commands_text() -> str:
    """What can be typed besides prompts."""
    return "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())


class Talk:
    """The messages so far. An answer that was cut short stays as far as it came."""

    def __init__(self, args: argparse.Namespace, model: str) -> None:
        self._server = options.server(args)
        self._body: dict[str, Any] = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | options.sampling(args)
        self._system: str | None = args.system
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash says."""
        name, _, rest = line.partition(" ")
        if name == "/help":
            console.note(commands_text())
        elif name == "/reset":
            self.reset()
            console.note("forgotten")
        elif name == "/system":
            self._system = rest.strip() or None
            self.reset()
            console.note("a new talk with this system message" if rest else "no system message")
        elif name == "/save":
            self._save(rest.strip())
        else:
            console.note(f"no command {name}; /help lists them")

    def _save(self, name: str) -> None:
        if not name:
            console.note("/save needs the name of a file")
            return
        try:
            text = json.dumps(self.messages, indent=1, ensure_ascii=False) + "\n"
            Path(name).write_text(text, "utf-8", "backslashreplace")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            console.note(f"cannot write {name}: {reason.lower()}")
        else:
            count = len(self.messages)
            console.note(f"{count} {'message' if count == 1 else 'messages'} in {name}")

    def turn(self, prompt: str) -> None:
        """Send `prompt`, show the answer as it comes, remember both."""
        self.messages.append({"role": "user", "content": prompt})
        answer = Answer()
        body = self._body | {"messages": self.messages}
        try:
            answer.follow(self._server.post_events("/v1/chat/completions", body))
        except KeyboardInterrupt:
            console.note(" (ended)")
        except DopdError as error:
            self.messages.pop()
            if not sys.stdin.isatty():
                raise
            if answer.pieces:
                console.say()
            console.fail(error)
            return
        else:
            console.say()
            note_faintly(answer.summary())
        self.messages.append({"role": "assistant", "content": answer.text})
