"""The settings have two owners, Rust and Python; together they are one file."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dopd.cli import worker_table
from dopd.worker.config import WorkerConfig
from tests.support.processes import run


@pytest.fixture(scope="module")
def shown() -> list[dict[str, Any]]:
    done = run("config", "show", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["settings"]
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("config", "schema").stdout)
    return found


def test_show_and_schema_name_the_same_settings_with_the_same_defaults(
    shown: list[dict[str, Any]], schema: dict[str, Any]
) -> None:
    described = {
        f"{table}.{name}": property.get("default")
        for table, found in schema["properties"].items()
        if found.get("type") == "object"
        for name, property in found["properties"].items()
    }
    assert {setting["path"]: setting["value"] for setting in shown} == described
    assert {setting["origin"] for setting in shown} == {"default"}


def test_the_workers_table_has_every_setting_of_a_worker(shown: list[dict[str, Any]]) -> None:
    table = {path[7:] for s in shown if (path := s["path"]).startswith("worker.")}
    fields = {field.name for field in dataclasses.fields(WorkerConfig)}
    # The secret itself comes from a file or the environment; what is for tests is not shown.
    hidden = {"join_token", "exit_on_stdin_eof", "mock_faults", "kv_poison", "debug_checks"}
    assert fields - hidden == table - {"join_token_file"}


def test_what_show_prints_is_a_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "dopd.toml"
    given = ("--port", "9000", "--worker-arg=--threads=2", "--served-model-name", 'a "b"')
    text = run("config", "show", "--origin", *given).stdout
    assert [line for line in text.splitlines() if line.endswith("# --port")]
    file.write_text(text)
    tables = tomllib.loads(text)
    assert tables["http"]["port"] == 9000
    assert tables["model"]["served_name"] == 'a "b"'
    done = run("config", "check", file)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_check_names_every_mistake_of_both_owners(tmp_path: Path) -> None:
    file = tmp_path / "dopd.toml"
    file.write_text(
        '[http]\nprot = 3\n\n[worker]\nthreads = "2"\nmax_batch_tokns = 4\n  page_size = 0\n'
        '[log]\nformat = "yaml"\n'
    )
    done = run("config", "check", file)
    assert done.returncode == 2
    assert done.stderr.replace(str(file), "FILE").splitlines() == [
        'error: FILE:2:1: unknown setting "http.prot", did you mean "port"',
        'error: FILE:5:1: worker.threads is "2", expected integer',
        'error: FILE:6:1: unknown setting "worker.max_batch_tokns", '
        'did you mean "max_batch_tokens"',
        "error: FILE:7:3: page_size is 0, at least 1 is needed",
        'error: FILE:9:1: log.format is "yaml", allowed are text, json',
    ]
    found = json.loads(run("config", "check", file, "--json").stdout)
    assert [(p["line"], p["column"]) for p in found["problems"]][:2] == [(2, 1), (5, 1)]
    assert not found["is_valid"]


def test_origins_are_default_file_variable_and_flag(tmp_path: Path) -> None:
    file = tmp_path / "dopd.toml"
    file.write_text("[limits]\nchoices_max = 4\n[worker]\nthreads = 2\n")
    words = ("config", "show", "--json", "--config", file, "--port", "1")
    found = json.loads(run(*words, env={"DOPD_GRPC__PORT": "2"}).stdout)["settings"]
    origins = {s["path"]: (s["value"], s["origin"]) for s in found if not s["is_default"]}
    assert origins == {
        "limits.choices_max": (4, f"{file}:2"),
        "http.port": (1, "--port"),
        "grpc.port": (2, "DOPD_GRPC__PORT"),
        "worker.threads": (2, f"{file}:4"),
    }


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"role": "boss"}, "role"),
        ({"join": "nowhere"}, "join"),
        ({"data_host": "10.0.0.1"}, "data_host"),
        ({"kv_memory": "much"}, "kv_memory"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"threads": True}, "threads"),
        ({"log_level": "loud"}, "log_level"),
        ({"model": "x", "mock": True}, None),
        ({"max_num_seqs": 400, "max_batch_tokens": 300}, None),
    ],
)
def test_pythons_half_finds_what_a_worker_would_refuse(
    table: dict[str, Any], key: str | None
) -> None:
    assert list(worker_table.problems(table)) == [key]


def test_settings_that_fit_only_together_are_fine() -> None:
    assert not worker_table.problems({"max_num_seqs": 8, "max_batch_tokens": 100})
