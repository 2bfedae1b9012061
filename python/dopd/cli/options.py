"""Options that several commands share: which server, how to sample."""

from __future__ import annotations

import argparse
from typing import Any

from dopd import env
from dopd.cli import http

SAMPLING = (
    ("max_tokens", int, "N", "longest answer in tokens"),
    ("temperature", float, "T", "0 is greedy"),
    ("top_p", float, "P", "least probable tokens left out, by their sum"),
    ("top_k", int, "K", "only the K most probable tokens"),
    ("min_p", float, "P", "least probability, as a share of the most probable token's"),
    ("presence_penalty", float, "X", "against tokens that the answer has"),
    ("frequency_penalty", float, "X", "the same, by how often"),
    ("repetition_penalty", float, "X", "against tokens of prompt and answer; 1 is none"),
    ("seed", int, "N", "same seed, same answer"),
)


def add_server(parser: argparse.ArgumentParser) -> None:
    """--url and --api-key."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        default=env.get("URL") or http.DEFAULT_URL,
        help="address of the server [env: DOPD_URL] (default: %(default)s)",
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="its key (default: DOPD_API_KEY, which `ps` does not show)"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How the answer is drawn; what is not given is the server's default."""
    group = parser.add_argument_group("sampling")
    for name, kind, metavar, text in SAMPLING:
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; repeatable"
    )


def server(args: argparse.Namespace) -> http.Server:
    """The server of --url and --api-key; the environment keeps a key out of `ps`."""
    return http.Server(args.url, args.api_key or env.get("API_KEY"))


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of a request body for what was given."""
    names = [name for name, *_ in SAMPLING] + ["stop"]
    return {name: value for name in names if (value := getattr(args, name)) is not None}
