"""The table `[worker]` of the settings file: Python's half of `dopd config`.

The router reads the file and asks here, in JSON, what Python makes of that table.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dopd.errors import ConfigError
from dopd.types import Role
from dopd.worker import args
from dopd.worker.config import LOG_LEVELS, WorkerConfig

# Never shown, wherever it may come from.
MASK = "********"
SECRETS = frozenset({"join_token"})
# What a worker needs and this table seldom has; only the rest is judged.
OTHERS: dict[str, Any] = {
    "role": Role.MIXED,
    "join": "127.0.0.1:50052",
    "join_token": "given elsewhere",
    "name": "worker",
}
WORDS = {
    "role": [role.value for role in Role],
    "log_level": list(LOG_LEVELS),
    "dtype": ["auto", "float32", "bfloat16", "float16"],
    "attention": ["auto", "flashinfer", "torch"],
}
JSON_TYPES = {"int": "integer", "float": "number", "bool": "boolean"}


def answer(table: str) -> str:
    """JSON of: every setting with its value, what is wrong with `table`, the table's schema."""
    values: dict[str, Any] = json.loads(table)
    found = {
        "settings": settings(values),
        "problems": [{"key": key, "message": message} for key, message in problems(values).items()],
        "schema": schema(),
    }
    return json.dumps(found)


def settings(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Every key that the table may have, with the value of the table or the default."""
    defaults = _defaults()
    return [
        {"name": key, "value": MASK if key in SECRETS else values.get(key, defaults.get(key))}
        for key in args.table_keys()
    ]


def problems(values: dict[str, Any]) -> dict[str | None, str]:
    """What is wrong, by key; None: the keys do not fit each other."""
    found: dict[str | None, str] = {}
    known: dict[str, Any] = {}
    for key, value in values.items():
        if problem := args.unknown_key(key):
            found[key] = problem
        else:
            known[key] = value
    whole = _problem(known)
    if whole is None:
        return found
    # Which key is it? If each is fine alone, they do not fit each other.
    for key, value in known.items():
        if problem := _problem({key: value}):
            found[key] = problem
    if not found.keys() & known.keys():
        found[None] = whole
    return found


def _problem(values: dict[str, Any]) -> str | None:
    """Why a worker with these settings, and whatever else it needs, would be refused."""
    for key, value in values.items():
        words = WORDS.get(key)
        if words and value not in words:
            return f"worker.{key} is {json.dumps(value)}, allowed are {', '.join(words)}"
        if not _fits(key, value):
            kind = _types().get(key, "string")
            return f"worker.{key} is {json.dumps(value)}, expected {kind}"
    fields = {key: value for key, value in values.items() if key != "join_token_file"}
    if "model" in fields:
        fields["model"] = Path(fields["model"])
    if "role" in fields:
        fields["role"] = Role(fields["role"])
    if not fields.get("model"):
        fields["mock"] = True
    try:
        WorkerConfig(**(OTHERS | fields))
    except ConfigError as error:
        return str(error)
    return None


def _fits(key: str, value: Any) -> bool:
    kind = _types().get(key, "string")
    # Settings are JSON by now, which writes 1 for 1.0.
    python = {"integer": (int,), "number": (float, int), "boolean": (bool,)}.get(kind, (str,))
    return type(value) in python


def schema() -> dict[str, Any]:
    """JSON Schema of the table."""
    defaults, types = _defaults(), _types()
    properties: dict[str, Any] = {}
    for key, text in args.table_keys().items():
        properties[key] = {"type": types.get(key, "string"), "description": text}
        if key in WORDS:
            properties[key]["enum"] = WORDS[key]
        if defaults.get(key) is not None:
            properties[key]["default"] = defaults[key]
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _types() -> dict[str, str]:
    """JSON Schema's word for the type of each setting that WorkerConfig has."""
    return {
        field.name: JSON_TYPES.get(str(field.type).removesuffix(" | None"), "string")
        for field in dataclasses.fields(WorkerConfig)
    }


def _defaults() -> dict[str, Any]:
    """Defaults of the settings that have one; an empty text is none."""
    return {
        field.name: field.default
        for field in dataclasses.fields(WorkerConfig)
        if field.default is not dataclasses.MISSING and field.default != ""
    }
