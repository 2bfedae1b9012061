"""status: what the fleet of a running server looks like, once or live."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from dopd.cli import console, options
from dopd.cli.http import Server

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

HEADER = ("WORKER", "PID", "ROLE", "STATE", "ADDRESS", "RUNNING", "SEATS", "QUEUED", "PAGES")
RIGHT = frozenset({1, 5, 6, 7, 8})
INTERVAL_S = 1.0
INTERVAL_MIN_S = 0.1
# A day at one look a second; nobody watches longer without noticing the end.
LOOKS_MAX = 100_000
BAR_CELLS = 12
# Links that are named; a fleet has prefill workers times decode workers of them.
LINKS_SHOWN_MAX = 8
COLUMNS_MAX = 1_000
# Columns that a narrow terminal does without, first to last.
SPARED = ("pid", "device", "step ms", "seats", "queued", "running")
ROLE_STYLE = {"prefill": "cyan", "decode": "magenta", "mixed": "blue"}
STATE_STYLE = {"ready": "green", "suspect": "red bold", "draining": "yellow"}


def run(argv: list[str]) -> int:
    """Print the fleet; the exit code is 3 if no worker can take a request."""
    args = parser().parse_args(argv[1:])
    try:
        return _run(args)
    except (KeyError, TypeError) as error:
        message = f"the status of {args.url} lacks {error}; is it a dopd of this version"
        raise console.CommandError(message) from error


def _run(args: argparse.Namespace) -> int:
    server = options.server(args)
    if args.watch is not None:
        return watch(server, args)
    status = look(server)
    if args.json:
        console.say(json.dumps(status))
    elif console.has_colour(sys.stdout):
        from rich.console import Console

        terminal = Console()
        terminal.print(draw(status, terminal))
    else:
        console.say(render(status))
    return health(status)


def parser() -> argparse.ArgumentParser:
    """The options of `dopd status`."""
    made = console.parser("status", "Workers, roles, load and pages of a running server.")
    made.epilog = (
        "--url takes the HTTP or the admin listener.\n"
        "exit codes: 0 ready, 1 failed, 2 usage, 3 no server or no worker that can serve"
    )
    made.add_argument("--json", action="store_true", help="the server's answer as it is")
    made.add_argument(
        "-w",
        "--watch",
        type=interval,
        nargs="?",
        const=INTERVAL_S,
        metavar="S",
        help=f"look again every S seconds, until Ctrl-C (default: {INTERVAL_S:g})",
    )
    options.add_server(made)
    return made


def interval(text: str) -> float:
    """Seconds between two looks."""
    value = float(text)
    if not INTERVAL_MIN_S <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is less than {INTERVAL_MIN_S:g}")
    return value


def look(server: Server) -> dict[str, Any]:
    """The fleet now."""
    found: dict[str, Any] = server.get_json("/status", "workers")
    return found


def health(status: dict[str, Any]) -> int:
    """The exit code that tells whether a worker can take a request."""
    ready = any(worker["state"] == "ready" for worker in status["workers"])
    return console.OK if ready else console.UNHEALTHY


def watch(server: Server, args: argparse.Namespace) -> int:
    """Look again and again: redrawn on a terminal, else one text or JSON document a look."""
    status = look(server)
    if args.json or not console.has_colour(sys.stdout):
        for _ in range(LOOKS_MAX):
            console.say(json.dumps(status) if args.json else render(status) + "\n")
            time.sleep(args.watch)
            status = look(server)
        return health(status)
    from rich.console import Console
    from rich.live import Live

    terminal = Console()
    with Live(draw(status, terminal), console=terminal, auto_refresh=False, screen=True) as live:
        for _ in range(LOOKS_MAX):
            time.sleep(args.watch)
            try:
                status = look(server)
            except console.CommandError as error:
                # It may come back; what was seen last stays in sight.
                live.update(draw(status, terminal, str(error)), refresh=True)
            else:
                live.update(draw(status, terminal), refresh=True)
    return health(status)


def render(status: dict[str, Any]) -> str:
    """A headline, one line per worker, one for the links, one for the requests."""
    workers = status["workers"]
    body = "no worker is attached"
    if workers:
        body = console.table(HEADER, [row(worker) for worker in workers], right=RIGHT)
    parts = [headline(status), body, ways(status), totals(status)]
    return "\n\n".join(part for part in parts if part)


def headline(status: dict[str, Any]) -> str:
    """What is served, by which version, since when."""
    model, version = status.get("model", "?"), status.get("version", "?")
    return f"model {model}, dopd {version}, up {duration(status.get('uptime_s', 0))}"


def totals(status: dict[str, Any]) -> str:
    """The requests of the whole fleet."""
    return (
        f"{status['requests_waiting']} waiting ({status['tokens_waiting']} tokens), "
        f"{status['sequences_running']} running, {status['handoffs_running']} handing off; "
        f"{status['handoffs_total']} hand-offs and {status['replays_total']} replays since start"
    )


def ways(status: dict[str, Any]) -> str:
    """How KV travels between the workers, where a link is up: `p0 -> d0 over shm (3.1 GB/s)`."""
    texts = [
        f"{worker['id']} -> {link['peer']} over {link['transport']}{rate(link['bytes_per_s'])}"
        for worker in status["workers"]
        for link in worker.get("links", ())
    ]
    shown = texts[:LINKS_SHOWN_MAX]
    if len(texts) > len(shown):
        shown.append(f"and {len(texts) - len(shown)} more")
    return f"links: {', '.join(shown)}" if shown else ""


def rate(bytes_per_s: int) -> str:
    """` (3.1 GB/s)`; nothing if it was not measured."""
    if not bytes_per_s:
        return ""
    if bytes_per_s < 1e9:
        return f" ({bytes_per_s / 1e6:.0f} MB/s)"
    return f" ({bytes_per_s / 1e9:.1f} GB/s)"


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


def draw(status: dict[str, Any], terminal: Console, problem: str | None = None) -> RenderableType:
    """The same for a terminal: colours, a bar for the pages in use, as many columns as fit."""
    from rich.console import Group
    from rich.text import Text

    table = fleet(status, ())
    # What the table would take if it had the room.
    room = terminal.options.update(width=COLUMNS_MAX)
    for count in range(1, len(SPARED) + 1):
        if terminal.measure(table, options=room).maximum <= terminal.width:
            break
        table = fleet(status, SPARED[:count])
    parts: list[RenderableType] = [Text(headline(status), "bold"), table]
    if not status["workers"]:
        parts[1] = Text("\nno worker is attached\n", "yellow")
    if links := ways(status):
        parts.append(Text(f"{links}\n"))
    parts.append(Text(totals(status)))
    if problem:
        parts.append(Text(f"\n{problem}; looking again", "red"))
    return Group(*parts)


def fleet(status: dict[str, Any], spared: tuple[str, ...]) -> Table:
    """One row a worker, without the columns that are spared."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    rows = [
        {
            "worker": Text(worker["id"]),
            "role": Text(worker["role"], ROLE_STYLE.get(worker["role"], "")),
            "state": Text(worker["state"], STATE_STYLE.get(worker["state"], "")),
            "running": Text(str(worker["running"])),
            "seats": Text(str(worker["seats"])),
            "queued": Text(str(worker["prefill_tokens_queued"])),
            "step ms": Text(f"{worker.get('step_us', 0) / 1e3:.1f}"),
            "pages in use": Text(bar(worker["pages"])),
            "device": Text(worker.get("device", "")),
            "pid": Text(str(worker["pid"]), "dim"),
        }
        for worker in status["workers"]
    ]
    shown = [name for name in (rows[0] if rows else {}) if name not in spared]
    for name in shown:
        is_number = name in ("running", "seats", "queued", "step ms", "pid")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*(cells[name] for name in shown))
    return table


def bar(pages: dict[str, int]) -> str:
    """`###.... 12/40`: pages in use of all."""
    used, total = pages["total"] - pages["free"], pages["total"]
    full = round(BAR_CELLS * used / total) if total else 0
    # One page in use is to be seen.
    full = max(full, 1) if used else 0
    return f"{'█' * full}{'░' * (BAR_CELLS - full)} {used}/{total}"


def duration(seconds: float) -> str:
    """`3 s`, `4 min 5 s`, `2 h 3 min`."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"
