"""complete: one prompt, one answer, streamed to stdout."""

from __future__ import annotations

import argparse
import json
import sys

from dopd.cli import console, options
from dopd.cli.answer import Answer, note_faintly

# As much as the server takes (limits.prompt_bytes_max), and one more to be refused by it.
PROMPT_BYTES_MAX = (8 << 20) + 1


def run(argv: list[str]) -> int:
    """Send the prompt and show the answer as it comes."""
    args = parser().parse_args(argv[1:])
    server = options.server(args)
    prompt = read_prompt() if args.prompt == "-" else args.prompt
    body = {
        "model": args.model or server.served_model(),
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | options.sampling(args)
    answer = Answer(is_shown=not args.json)
    if args.echo and not args.json:
        console.stream(prompt)
    answer.follow(server.post_events("/v1/completions", body))
    if args.json:
        found = {
            "model": body["model"],
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": answer.usage,
        }
        console.say(json.dumps(found | answer.timings(), ensure_ascii=False))
    else:
        console.say()
        note_faintly(answer.summary())
    return console.OK


def read_prompt() -> str:
    """The prompt from stdin, all of it, as it is."""
    data = sys.stdin.buffer.read(PROMPT_BYTES_MAX)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        message = (
            f"the prompt on stdin is not UTF-8: byte {error.start} is {data[error.start]:#04x}"
        )
        raise console.CommandError(message, code=console.USAGE) from error


def parser() -> argparse.ArgumentParser:
    """The options of `dopd complete`."""
    made = console.parser("complete", "Complete one prompt; the answer is streamed to stdout.")
    made.epilog = (
        'examples:\n  dopd complete "The capital of France is" --max-tokens 8\n'
        "  git diff | dopd complete - --json"
    )
    made.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from stdin")
    made.add_argument("--model", help="name of the model (default: the one served)")
    made.add_argument("--echo", action="store_true", help="show the prompt before the answer")
    made.add_argument("--json", action="store_true", help="one JSON document at the end")
    options.add_server(made)
    options.add_sampling(made)
    return made
