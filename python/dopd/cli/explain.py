"""explain: why a request went where it went, as the scheduler saw it."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote

from dopd import env
from dopd.cli import console, http

DEFAULT_URL = "http://127.0.0.1:9464"
MICROS = 1_000_000

TASKS = {
    "prefill": "compute the prompt",
    "decode": "take the answer over",
    "steal": "compute the prompt itself",
    "keep": "go on with the answer",
}
VERDICTS = {
    "chosen": "chosen",
    "worse": "another is better",
    "gate": "no place to decode is free",
    "kv": "its KV pool would overflow",
    "step": "its decode step would take too long",
    "in_time": "not done in time",
    "breaker": "its breaker is open",
    "drain": "it takes nothing new",
    "busy": "it has enough prompts",
    "seats": "no seat is left",
    "quarantine": "must not meet a suspect of a worker's death",
    "too_long": "longer than it can hold",
    "not_needed": "not needed",
}
CHOICES = {
    "queue": "arrived and waits",
    "wait": "waits: nobody could take it",
    "keep": "{worker} computes it {why}",
    "pair": "{prefill} computes it, {decode} goes on with the answer",
    "switch": "its KV has arrived: {worker} goes on",
    "stay": "the hand-off was given up: it stays at {worker}",
    "replay": "waits again, in front, to be computed again: {fault}",
    "demote": "cannot meet its target any more: behind those that can",
    "reject": "refused: {why}",
    "finish": "answered",
    "cancel": "ended by its client or a stop string",
}
KEPT = {
    "label": "and goes on with it",
    "stolen": "and goes on with it: a decode worker helps",
    "no_place": "and goes on with it: no decode worker has a place",
    "linger": "and makes the first tokens: short answers are too short for a hand-off",
    "ungated": "and makes the first tokens: no place is reserved, the gate is off",
}


def run(argv: list[str]) -> int:
    """Print the decisions; the exit code is 1 if nothing is known of the request."""
    args = parser().parse_args(argv[1:])
    server = http.Server(args.url)
    path = "/admin/explain" + (f"/{quote(args.request, safe='')}" if args.request else "")
    try:
        page = server.get_json(path, "decisions")
    except http.HttpError as error:
        if error.status == 404 and "no route" in str(error):
            error.fix = f"--url of the metrics port, as {DEFAULT_URL}: the server's banner has it"
        raise
    try:
        console.say(json.dumps(page) if args.json else render(page))
    except (KeyError, TypeError) as error:
        message = f"the answer of {args.url} lacks {error}; is it a dopd of this version"
        raise console.CommandError(message) from error
    return console.OK


def parser() -> argparse.ArgumentParser:
    """The options of `dopd explain`."""
    made = console.parser("explain", "Why a request waited, and went where it went.")
    made.epilog = (
        "exit codes: 0 found, 1 unknown or forgotten, 2 usage, 3 no server\n"
        "policy.explain_decisions_max says how much the server remembers"
    )
    made.add_argument(
        "request",
        nargs="?",
        metavar="REQUEST_ID",
        help="header x-request-id, or the id of the answer (default: the newest decisions)",
    )
    made.add_argument("--json", action="store_true", help="the server's answer as it is")
    made.add_argument(
        "--url",
        default=env.get("ADMIN_URL") or DEFAULT_URL,
        help="address of the admin listener [env: DOPD_ADMIN_URL] (default: %(default)s)",
    )
    return made


def render(page: dict[str, Any]) -> str:
    """A headline, then one paragraph a decision."""
    ring, decisions = page["ring"], page["decisions"]
    head = f"request {page['id']}" if page["id"] else "the newest decisions"
    lines = [f"{head}: {len(decisions)} decisions; {reach(ring, page['now'])}"]
    if page["is_cut"] and page["id"]:
        lines.append("earlier decisions about it are forgotten")
    first = decisions[0]["at"] if decisions else 0
    is_single = len({sequence(decision) for decision in decisions}) <= 1
    places = {request: place for place, request in enumerate(page["prompts"])}
    for decision in decisions:
        of = "" if is_single else whose(decision, places)
        lines += ["", *paragraph(decision, page["workers"], first, of)]
    return "\n".join(lines)


def whose(decision: dict[str, Any], places: dict[int, int]) -> str:
    """Which prompt and choice of the request that was asked for; else which request."""
    request, choice = sequence(decision)
    if request not in places:
        return f"request {request} choice {choice}: "
    return (f"prompt {places[request]} " if len(places) > 1 else "") + f"choice {choice}: "


def reach(ring: dict[str, Any], now: int) -> str:
    """How far back the server remembers."""
    oldest = ring["oldest"]
    if oldest is None:
        return "the server remembers none"
    age = (now - oldest) / MICROS
    return f"the server remembers {ring['decisions']}, back to {age:.1f} s ago"


def sequence(decision: dict[str, Any]) -> tuple[int, int]:
    """The request and the number of its choice."""
    found = decision["sequence"]
    return found["request"], found["choice"]


def paragraph(decision: dict[str, Any], names: dict[str, str], first: int, of: str) -> list[str]:
    """What was chosen (`of` says for whom), what was seen, and who else was looked at."""
    lines = [f"{(decision['at'] - first) / 1_000:>10.1f} ms  {of}{said(decision, names)}"]
    indent = " " * 15
    lines.append(indent + seen(decision["saw"]))
    if decision["times"] > 1:
        until = (decision["until"] - first) / 1_000
        lines.append(f"{indent}looked at {decision['times']} times, until {until:.1f} ms")
    for row in decision["alternatives"]:
        name = names.get(str(row["worker"]), f"session {row['worker']}")
        task = TASKS.get(row["task"], row["task"])
        verdict = VERDICTS.get(row["verdict"], row["verdict"])
        lines.append(f"{indent}- {name} could {task} (score {row['score']}): {verdict}")
    if decision["alternatives_more"]:
        lines.append(f"{indent}- and {decision['alternatives_more']} more")
    return lines


def said(decision: dict[str, Any], names: dict[str, str]) -> str:
    """The decision in words."""
    words = dict(decision)
    for key in ("worker", "prefill", "decode"):
        if key in decision:
            words[key] = names.get(str(decision[key]), f"session {decision[key]}")
    if decision["choice"] == "keep":
        words["why"] = KEPT.get(decision["why"], decision["why"])
    return CHOICES.get(decision["choice"], "{choice}").format_map(words)


def seen(saw: dict[str, Any]) -> str:
    """What was known."""
    parts = [f"prompt {saw['prompt_tokens']} tokens"]
    if saw["answer_tokens"]:
        parts.append(f"answer {saw['answer_tokens']} of at most {saw['max_tokens']}")
    else:
        parts.append(f"answer at most {saw['max_tokens']}")
    if saw["prefill_us"]:
        parts.append(f"prefill predicted {saw['prefill_us'] / 1_000:.1f} ms")
    parts.append(f"{saw['waited_us'] / 1_000:.1f} ms after its arrival")
    if saw["target_us"] is not None:
        left = (saw["target_us"] - saw["waited_us"]) / 1_000
        parts.append(f"first token due in {left:.0f} ms" if left >= 0 else f"{-left:.0f} ms late")
    if saw["is_late"]:
        parts.append("taken for late")
    if saw["waiting"]:
        parts.append(f"{saw['waiting']} waiting ({saw['waiting_tokens']} tokens)")
    return ", ".join(parts)
