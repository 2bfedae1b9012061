"""From command line and TOML file to a checked `WorkerConfig`. The command line wins."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dopd import env
from dopd.errors import ConfigError
from dopd.types import Role
from dopd.worker.config import LOG_FORMATS, LOG_LEVELS, WorkerConfig

TOKEN_BYTES_MAX = 4096
# TOML writes 1 for 1.0.
_KINDS = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}


def parse(argv: Sequence[str], join_token: str | None = None) -> WorkerConfig:
    """The settings. join_token: None: of a file or the environment. Raises ConfigError; argparse
    itself exits with 2."""
    given = dict(vars(parser().parse_args(argv)))
    file = given.pop("config", None)
    values = (_read_table(Path(file)) if file else {}) | given
    for required in ("role", "join"):
        if required not in values:
            raise ConfigError(f"--{required} is missing")
    return WorkerConfig(**_convert(values, join_token))


def _convert(values: dict[str, Any], join_token: str | None) -> dict[str, Any]:
    values = dict(values)
    try:
        values["role"] = Role(values["role"])
    except ValueError:
        roles = ", ".join(role.value for role in Role)
        raise ConfigError(f"role {values['role']!r} is none of {roles}") from None
    for path in ("model", "timings"):
        if path in values:
            values[path] = Path(values[path])
    values.setdefault("name", f"{values['role'].value}-{os.getpid()}")
    token_file = values.pop("join_token_file", None)
    if token_file:
        join_token = _read_token(Path(token_file))
    values["join_token"] = _token_of_env() if join_token is None else join_token
    _check_types(values)
    return values


def _check_types(values: dict[str, Any]) -> None:
    """A TOML file may hold anything; a wrong type is found here and not in the middle of a step."""
    for spec in dataclasses.fields(WorkerConfig):
        value = values.get(spec.name)
        for name, kinds in _KINDS.items():
            if value is not None and spec.type in (name, f"{name} | None"):
                if type(value) not in kinds:
                    raise ConfigError(f"{spec.name} is {value!r}, which is no {name}")


def _token_of_env() -> str:
    return env.get("JOIN_TOKEN") or ""


def _read_token(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(TOKEN_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"join token file {path}: {error}") from error


def _read_table(path: Path) -> dict[str, Any]:
    """The [worker] table of a TOML file; its keys are the long options with underscores."""
    import tomllib

    try:
        with path.open("rb") as file:
            table = tomllib.load(file).get("worker", {})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"configuration {path}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"configuration {path}: worker is no table")
    for key in table:
        if problem := unknown_key(key):
            raise ConfigError(f"configuration {path}: {problem}")
    return table


def table_keys() -> dict[str, str]:
    """Every key of the [worker] table with its help text."""
    # Options of the command line only.
    skipped = ("help", "config", "exit_on_stdin_eof")
    return {
        action.dest: action.help or ""
        for action in parser()._actions
        if action.dest not in skipped and action.help != argparse.SUPPRESS
    }


def unknown_key(key: str) -> str | None:
    """What is wrong with a key that the [worker] table cannot have, and what was meant."""
    known = table_keys()
    if key in known:
        return None
    near = difflib.get_close_matches(key, known, 1)
    hint = f', did you mean "{near[0]}"' if near else ""
    return f'unknown setting "worker.{key}"{hint}'


def parser() -> argparse.ArgumentParser:
    """The options of a worker, also for completion in shells."""
    parser = argparse.ArgumentParser(
        prog="python -m dopd.worker",
        description="One dopd worker: attaches to a router and computes what it is told.",
        # Absent options stay absent, so that the file's values show through.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="PATH", help="model folder, .gguf file, or random:NAME[:SEED]")
    add("--mock", action="store_true", help="no model: tokens from arithmetic, times from a model")
    add("--role", choices=[role.value for role in Role], help="label: any worker can do both")
    add("--join", metavar="HOST:PORT", help="where the router listens for workers")
    add("--name", help="unique in the fleet (default: role and process id)")
    add("--served-model-name", help="name that clients use (default: the model's own)")
    add("--data-host", metavar="HOST", help="address to receive KV on (default: 127.0.0.1)")
    add("--data-advertise", metavar="HOST:PORT", help="address that peers are told (default: own)")
    add(
        "--transports",
        metavar="LIST",
        help="ways to move KV, best first, of cuda_ipc, nccl, shm and tcp, or auto: those that "
        "memory and machine have (default: auto)",
    )
    add("--device", help="auto, cpu, cuda or cuda:N (default: auto, the first GPU if there is one)")
    add("--dtype", help="auto, float32, bfloat16 or float16 (default: auto)")
    add("--attention", metavar="NAME", help="auto, flashinfer or torch (default: auto)")
    add(
        "--cascade-attention",
        action=argparse.BooleanOptionalAction,
        help="read pages that all sequences of a decode step share once, without graph (default: "
        "no)",
    )
    add("--kv-memory", metavar="SIZE", help="memory for KV pages, as 512MiB (default: by device)")
    add(
        "--gpu-memory-utilization",
        type=float,
        metavar="F",
        help="share of the GPU's memory for weights, graphs and KV together (default: 0.9)",
    )
    add(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="replay decode steps on a GPU as CUDA graphs (default: yes)",
    )
    add("--max-model-len", type=int, metavar="TOKENS", help="prompt plus answer at most")
    add("--max-num-seqs", type=int, metavar="N", help="sequences in a step (default: 256)")
    add("--max-batch-tokens", type=int, metavar="N", help="tokens in a step (cpu 512, gpu 8192)")
    add("--page-size", type=int, metavar="TOKENS", help="tokens of one KV page (default: 16)")
    add("--mock-timings", metavar="NAME", help="instant, h100-8b, h100-70b or a file")
    add("--timings", metavar="FILE", help="step times, by `dopd bench engine` (default: warm-up's)")
    add("--threads", type=int, metavar="N", help="compute threads on a CPU (default: 1)")
    add("--join-token-file", metavar="FILE", help="join token (default: $DOPD_JOIN_TOKEN)")
    add("--drain-timeout", type=int, metavar="S", help="leave so long after SIGTERM (default: 120)")
    add("--exit-on-stdin-eof", action="store_true", help="end when stdin is closed")
    add("--log-level", choices=LOG_LEVELS, help="least level to show (default: info)")
    add("--log-format", choices=LOG_FORMATS, help="text or json (default: text)")
    add("--otel", metavar="URL", help="OTLP collector that gets spans, as http://127.0.0.1:4317")
    add("--config", metavar="FILE", help="TOML file whose [worker] table gives defaults")
    _add_debug_options(parser)
    return parser


def _add_debug_options(parser: argparse.ArgumentParser) -> None:
    """What only tests give: neither in the help nor in the settings file."""
    hide = argparse.SUPPRESS
    parser.add_argument("--mock-fault", dest="mock_faults", action="append", help=hide)
    parser.add_argument("--kv-poison", action="store_true", help=hide)
    parser.add_argument("--debug-checks", action="store_true", help=hide)
