"""Settings: command line, file, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dopd.errors import ConfigError
from dopd.kv.size import parse_memory
from dopd.types import Role
from dopd.worker.args import parse, parser
from dopd.worker.config import WorkerConfig

BASE = ["--mock", "--role", "decode", "--join", "127.0.0.1:50052"]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOPD_JOIN_TOKEN", "secret")


def write(path: Path, text: str) -> list[str]:
    file = path / "worker.toml"
    file.write_text(text)
    return ["--config", str(file)]


def test_defaults() -> None:
    config = parse(BASE)
    assert (config.role, config.mock, config.model) == (Role.DECODE, True, None)
    assert config.join_token == "secret"
    assert config.name.startswith("decode-")
    assert config.batch_tokens("mock") == 8192
    assert config.batch_tokens("cpu") == 512
    assert "secret" not in repr(config)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[worker]\nmax_num_seqs = 7\nkv_memory = "1MiB"\nname = "x"\n')
    config = parse([*BASE, *file, "--name", "y"])
    assert (config.max_num_seqs, config.kv_memory, config.name) == (7, "1MiB", "y")


def test_the_token_file_wins_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("other\n")
    assert parse([*BASE, "--join-token-file", str(file)]).join_token == "other"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[worker]\nmax_num_seq = 7\n", 'unknown setting "worker.max_num_seq", did you'),
        ("[worker]\nzzz = 7\n", 'unknown setting "worker.zzz"'),
        ('[worker]\nmax_num_seqs = "7"\n', "max_num_seqs is '7', which is no int"),
        ("[worker]\nmax_num_seqs = true\n", "max_num_seqs is True, which is no int"),
        ("worker = 3\n", "worker is no table"),
        ("[worker\n", "configuration"),
        ('[worker]\nrole = "both"\n', "unknown role"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, error: str) -> None:
    arguments = ["--mock", "--join", "127.0.0.1:1", *write(tmp_path, text)]
    if "role" in text:
        error = "role 'both' is none of prefill, decode, mixed"
    with pytest.raises(ConfigError, match=error):
        parse([*arguments, *([] if "role" in text else ["--role", "mixed"])])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--join", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["--join", "127.0.0.1:0"], "is not HOST:PORT"),
        (["--join", "10.0.0.1:50052"], "10.0.0.1 is not loopback"),
        (["--data-host", "0.0.0.0"], "0.0.0.0 is not loopback"),
        (["--data-advertise", "10.0.0.1:7"], "10.0.0.1 is not loopback"),
        (["--data-advertise", "127.0.0.1"], "data address '127.0.0.1' is not HOST:PORT"),
        (
            ["--transports", "rdma"],
            "transports 'rdma' is neither auto nor a list of",
        ),
        (["--transports", "tcp,tcp"], "nor a list of cuda_ipc, nccl, shm, tcp, best first"),
        (["--transports", ""], "transports '' is neither"),
        (["--name", "a b"], "name 'a b'"),
        (["--name", "x" * 65], "name 'x"),
        (["--model", "m"], "either --model PATH or --mock"),
        (["--kv-memory", "much"], "'much' is no size"),
        (["--kv-memory", "0"], "'0' is no size"),
        (["--kv-memory", "9" * 400], "is no size"),
        (["--max-num-seqs", "0"], "max_num_seqs is 0"),
        (["--max-batch-tokens", "100"], "max_batch_tokens is 100, but every one of"),
        (["--max-model-len", "1"], "max_model_len is 1"),
        (["--join-token-file", "/nowhere"], "join token file /nowhere"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments: list[str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        parse([*BASE, *arguments])


def test_a_token_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOPD_JOIN_TOKEN")
    with pytest.raises(ConfigError, match="no join token: set DOPD_JOIN_TOKEN"):
        parse(BASE)


@pytest.mark.parametrize("missing", ["--role", "--join"])
def test_role_and_join_are_needed(missing: str) -> None:
    index = BASE.index(missing)
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        parse(BASE[:index] + BASE[index + 2 :])


def test_sizes() -> None:
    assert parse_memory("512MiB") == 512 << 20
    assert parse_memory("1.5 GB") == 1_500_000_000
    assert parse_memory("77") == 77


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    options = {action.dest for action in parser()._actions} - {"help", "config"}
    fields = {field.name for field in dataclasses.fields(WorkerConfig)}
    assert options ^ fields == {"join_token", "join_token_file"}
