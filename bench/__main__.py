"""`python -m bench [NAME ...]`: run benches by name; all of them without one."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

# Minutes of load and nothing else: only by name.
LONG = ("sim_worth", "soak")
SHARED = (
    "__init__", "__main__", "common", "faults_anchors", "faults_pages", "mock_fleet", "peers",
    "sim_cells", "sim_judge",
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run each bench; a bench that fails or cannot run here says so and the others go on."""
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in SHARED)
    if unknown := set(names) - set(known):
        sys.stderr.write(f"error: no bench {', '.join(unknown)}; there are {', '.join(known)}\n")
        return 2
    codes = []
    for name in names or [name for name in known if name not in LONG]:
        print(f"== {name}", flush=True)
        codes.append(run(name))
    return max(codes, default=0)


def run(name: str) -> int:
    """One bench; its exit code, 1 if it failed."""
    try:
        code: int = importlib.import_module(f"bench.{name}").main([])
    except ModuleNotFoundError as error:
        print(f"{name} skipped: package {error.name} is not installed", flush=True)
        return 0
    except Exception:  # noqa: BLE001  # whatever it was, the other benches go on
        traceback.print_exc()
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
