"""chat: talk to a running server from the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dopd.cli import console, http
from dopd.errors import DopdError

INTRO = "{model} at {url}. /reset forgets the talk, /quit ends; Ctrl-C ends an answer."
TURNS_MAX = 1_000


def run(argv: list[str]) -> int:
    """Read prompts from stdin, one a line, and stream the answers until the input ends."""
    args = parse(argv[1:])
    model = args.model or served_model(args.url)
    if sys.stdin.isatty():
        console.note(INTRO.format(model=model, url=args.url))
        import readline  # noqa: F401  # gives input() history and editing
    talk = Talk(args, model)
    for _ in range(TURNS_MAX):
        try:
            prompt = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return console.OK
        if prompt == "/quit":
            return console.OK
        if prompt == "/reset":
            talk.reset()
        elif prompt:
            talk.turn(prompt)
    raise console.CommandError(f"the talk has {TURNS_MAX} turns", fix="dopd chat starts a new one")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of `dopd chat`."""
    parser = argparse.ArgumentParser(
        prog="dopd chat", description="Talk to a running server; prompts are read from stdin."
    )
    parser.add_argument("--url", default=http.DEFAULT_URL, help="(default: %(default)s)")
    parser.add_argument("--model", help="name of the model (default: the one served)")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")
    return parser.parse_args(argv)


def served_model(url: str) -> str:
    """Name of the first model that the server lists."""
    models = http.get_json(url, "/v1/models", "data")["data"]
    if not models:
        raise console.CommandError(f"the server at {url} serves no model", code=console.UNHEALTHY)
    return str(models[0]["id"])


class Talk:
    """The messages so far. An answer that was cut short stays as far as it came."""

    def __init__(self, args: argparse.Namespace, model: str) -> None:
        self._url: str = args.url
        options = {
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "seed": args.seed,
        }
        self._body: dict[str, Any] = {"model": model, "stream": True}
        self._body |= {name: value for name, value in options.items() if value is not None}
        self._system: str | None = args.system
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def turn(self, prompt: str) -> None:
        """Send `prompt`, show the answer as it comes, remember both."""
        self.messages.append({"role": "user", "content": prompt})
        pieces: list[str] = []
        try:
            self._answer(pieces)
        except KeyboardInterrupt:
            console.note(" (ended)")
        except DopdError as error:
            self.messages.pop()
            if not sys.stdin.isatty():
                raise
            console.fail(error)
            return
        console.say()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _answer(self, pieces: list[str]) -> None:
        body = self._body | {"messages": self.messages}
        for event in http.post_events(self._url, "/v1/chat/completions", body):
            for choice in event.get("choices", ()):
                text = choice["delta"].get("content") or ""
                pieces.append(text)
                console.stream(text)
