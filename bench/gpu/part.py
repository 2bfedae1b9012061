"""`python -m bench.gpu.part NAME SETUP_JSON FILE`: one part, in a process of its own."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from bench.gpu.setup import Setup, Skipped


def main(argv: list[str]) -> int:
    """Run it and write what it found. Exit code: 0 done, 3 skipped, anything else failed."""
    name, setup, file = argv
    try:
        found = importlib.import_module(f"bench.gpu.{name}").main(Setup(**json.loads(setup)))
    except Skipped as reason:
        Path(file).write_text(json.dumps({"skipped": str(reason)}))
        return 3
    Path(file).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
