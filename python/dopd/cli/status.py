"""status: what the fleet of a running server looks like."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dopd.cli import console, http

HEADER = ("WORKER", "PID", "ROLE", "STATE", "ADDRESS", "RUNNING", "SEATS", "QUEUED", "PAGES")
RIGHT = frozenset({1, 5, 6, 7, 8})


def run(argv: list[str]) -> int:
    """Print the fleet; the exit code is 3 if no worker can take a request."""
    parser = argparse.ArgumentParser(
        prog="dopd status",
        description="Workers, roles, load and pages of a running server.",
        epilog="exit codes: 0 ready, 1 failed, 2 usage, 3 no server or no worker that can serve",
    )
    parser.add_argument(
        "--url",
        default=http.DEFAULT_URL,
        help="address of the HTTP or the admin listener (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="the server's answer as it is")
    args = parser.parse_args(argv[1:])
    status = http.get_json(args.url, "/status", "workers")
    console.say(json.dumps(status) if args.json else render(status))
    ready = any(worker["state"] == "ready" for worker in status["workers"])
    return console.OK if ready else console.UNHEALTHY


def render(status: dict[str, Any]) -> str:
    """A headline, one line per worker, one line for the requests."""
    model, version = status.get("model", "?"), status.get("version", "?")
    headline = f"model {model}, dopd {version}, up {duration(status.get('uptime_s', 0))}"
    workers = status["workers"]
    body = "no worker is attached"
    if workers:
        body = console.table(HEADER, [row(worker) for worker in workers], right=RIGHT)
    requests = (
        f"{status['requests_waiting']} waiting ({status['tokens_waiting']} tokens), "
        f"{status['sequences_running']} running, {status['handoffs_running']} handing off; "
        f"{status['handoffs_total']} hand-offs and {status['replays_total']} replays since start"
    )
    return "\n\n".join([headline, body, requests])


def row(worker: dict[str, Any]) -> tuple[str, ...]:
    """One worker's cells; pages are those in use of all."""
    pages = worker["pages"]
    return (
        worker["id"],
        str(worker["pid"]),
        worker["role"],
        worker["state"],
        worker["address"],
        str(worker["running"]),
        str(worker["seats"]),
        str(worker["prefill_tokens_queued"]),
        f"{pages['total'] - pages['free']}/{pages['total']}",
    )


def duration(seconds: float) -> str:
    """`3 s`, `4 min 5 s`, `2 h 3 min`."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"
