"""`python -m bench [NAME ...]`: run benches by name; all of them without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

SHARED = ("__init__", "__main__", "common", "peers")


def main(names: list[str]) -> int:
    """Run each bench; a bench that fails or cannot run here says so and the others go on."""
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in SHARED)
    if unknown := set(names) - set(known):
        sys.stderr.write(f"error: no bench {', '.join(unknown)}; there are {', '.join(known)}\n")
        return 2
    codes = []
    for name in names or known:
        print(f"== {name}", flush=True)
        codes.append(importlib.import_module(f"bench.{name}").main([]))
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
