"""doctor: what is right and wrong with this machine for dopd, with the fix for each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dopd import env
from dopd.cli import console

if TYPE_CHECKING:
    from dopd.cli.doctor.checks import Finding

# Marks and their colours.
COLOURS = {"ok": "32", "warn": "33", "fail": "31;1"}


def run(argv: list[str]) -> int:
    """Print the findings; the exit code is 3 if something fails."""
    args = parser().parse_args(argv[1:])
    from dopd.cli.doctor import checks, gather

    findings = checks.diagnose(gather.facts(args.model, args.config))
    failed = any(finding.level == checks.FAIL for finding in findings)
    if args.json:
        found = [dataclasses.asdict(finding) for finding in findings]
        console.say(json.dumps({"is_healthy": not failed, "findings": found}, indent=1))
    else:
        console.say(render(findings, in_colour=console.has_colour(sys.stdout)))
    return console.UNHEALTHY if failed else console.OK


def parser() -> argparse.ArgumentParser:
    """The options of `dopd doctor`."""
    made = console.parser("doctor", "What is right and wrong with this machine, and the fix.")
    made.epilog = "exit codes: 0 nothing fails, 2 usage, 3 something fails"
    made.add_argument("model", nargs="?", metavar="MODEL", help="look at this model too")
    made.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        default=Path(named) if (named := env.get("CONFIG")) else None,
        help="settings file [env: DOPD_CONFIG]",
    )
    made.add_argument("--json", action="store_true", help="one JSON document")
    return made


def render(findings: list[Finding], *, in_colour: bool) -> str:
    """One line per finding, its fix below it, a summary."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = f"{finding.level:<4}"
        if in_colour:
            mark = f"\x1b[{COLOURS[finding.level]}m{mark}\x1b[0m"
        lines.append(f"{mark}  {finding.name:<{width}}  {finding.text}")
        if finding.fix and finding.level != "ok":
            lines.append(f"      {'':<{width}}  fix: {finding.fix}")
    counts = {level: sum(f.level == level for f in findings) for level in COLOURS}
    warnings = "warning" if counts["warn"] == 1 else "warnings"
    lines += ["", f"{counts['ok']} ok, {counts['warn']} {warnings}, {counts['fail']} failed"]
    return "\n".join(lines)
