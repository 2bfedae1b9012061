"""`python -m bench.gpu [PART ...]`: run parts that have no result yet, each in its own process.

Results are written to --json after each part: a later run with the same file goes on where this one
ended (--again measures anew). One log holds what all parts printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from bench.common import REPO, RESULTS, conditions
from bench.gpu.setup import Setup

# In this order: what tells most first. Seconds that each may take.
PARTS = {
    "env": 60,
    "attention": 300,
    "graphs": 240,
    "cascade": 240,
    "exact": 300,
    "nccl": 180,
    "tests": 540,
    "steps": 540,
    "handoff": 240,
    "pair": 480,
    "start": 300,
}
TAIL_CHARS = 4000
STOP_S = 10.0


def main(argv: list[str]) -> int:
    """Run; the exit code is 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json", help="results so far")
    parser.add_argument("--log", type=Path, help="what parts print (default: beside the results)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a dry run")
    parser.add_argument("--small", action="store_true", help="tiny shapes: a dry run")
    parser.add_argument("--model", help="SmolLM2's .gguf file (default: seeded weights)")
    parser.add_argument("--again", action="store_true", help="also parts that have a result")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after this")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    setup = Setup(args.device, args.small, args.model)
    return run(args.parts or list(PARTS), setup, args)


def run(names: list[str], setup: Setup, args: argparse.Namespace) -> int:
    """Every part that is due."""
    document = _read(args.json) | {"bench": "gpu", "setup": asdict(setup)}
    parts: dict[str, Any] = document.setdefault("parts", {})
    begun, has_failed = time.monotonic(), False
    log = args.log or args.json.with_suffix(".log")
    with log.open("ab") as out:
        for name in names:
            if parts.get(name, {}).get("status") == "done" and not args.again:
                print(f"{name:<10} done before", flush=True)
                continue
            left_s = args.seconds - (time.monotonic() - begun)
            if left_s < PARTS[name]:
                print(f"{name:<10} not begun: may take {PARTS[name]} s, {left_s:.0f} s left")
                continue
            parts[name] = run_part(name, setup, out) | {"conditions": conditions()}
            has_failed |= parts[name]["status"] == "failed"
            args.json.write_text(json.dumps(document, indent=1) + "\n")
            shown = parts[name].get("reason", "").strip().splitlines()[-1:]
            print(f"{name:<10} {parts[name]['status']}, {parts[name]['seconds']:.0f} s", *shown)
    return int(has_failed)


def run_part(name: str, setup: Setup, out: IO[bytes]) -> dict[str, Any]:
    """One part in a session of its own, which ends with it whatever it started."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dopd-gpu-") as folder:
        file, printed = Path(folder) / "result.json", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "bench.gpu.part", name, json.dumps(asdict(setup))]
        with printed.open("wb") as sink:
            process = subprocess.Popen(
                [*command, str(file)], cwd=REPO, stdout=sink, stderr=sink, start_new_session=True
            )
            code = _wait(process, PARTS[name])
        text = printed.read_text(errors="replace")
        out.write(f"\n==== {name} (exit {code})\n{text}".encode())
        out.flush()
        seconds = round(time.monotonic() - begun, 1)
        found = _read(file)
    if code == 0 and found:
        return {"status": "done", "seconds": seconds, "found": found}
    if code == 3 and "skipped" in found:
        return {"status": "skipped", "seconds": seconds, "reason": found["skipped"]}
    reason = text[-TAIL_CHARS:] if code is not None else f"no end within {PARTS[name]} s"
    return {"status": "failed", "seconds": seconds, "exit": code, "reason": reason}


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit code; None if it had to be killed. Its whole session is killed either way."""
    code: int | None = None
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    return code


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    assert isinstance(found, dict)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
