"""doctor finds each misconfiguration that is seeded here, and nothing on a machine without."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import struct
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dopd.cli import app, console, doctor
from dopd.cli.doctor import checks, gather, model, ports
from dopd.cli.doctor.facts import GIB, Facts, Gpu, Model, Port
from tests.support.sources import REPO

GOOD_PACKAGES = dict(checks.PACKAGES_MIN) | {"torch": "2.15.0+cpu", "flashinfer-python": "0.6.18"}
GOOD = Facts(packages=GOOD_PACKAGES, ports=(Port("http.port", "--port", "127.0.0.1:8000"),))
H100 = Gpu(0, "NVIDIA H100", 80 * GIB)
GPU = {"gpus": (H100,), "torch_cuda": "13.2", "driver": "590.1"}

# What is wrong, the facts that tell it, and the line that must say so: name, level, part of fix.
SEEDED: tuple[tuple[str, dict[str, Any], str, str, str], ...] = (
    ("old python", {"python": (3, 10, 1)}, "python", "fail", "3.11"),
    ("no grpcio", {"packages": GOOD_PACKAGES | {"grpcio": None}}, "packages", "fail", "pip"),
    ("old protobuf", {"packages": GOOD_PACKAGES | {"protobuf": "6.2"}}, "packages", "fail", "pip"),
    ("extension not built", {"extension": None}, "router", "fail", "make build"),
    ("extension of another build", {"extension": "0.0.9"}, "router", "fail", "make build"),
    (
        "no torch for a model",
        {"packages": GOOD_PACKAGES | {"torch": None}, "model": Model("m")},
        "torch",
        "fail",
        "dopd[worker]",
    ),
    ("no torch", {"packages": GOOD_PACKAGES | {"torch": None}}, "torch", "warn", "dopd[worker]"),
    ("old torch", {"packages": GOOD_PACKAGES | {"torch": "2.4.1"}}, "torch", "fail", "pip"),
    ("torch for CPUs on a GPU", {"gpus": (H100,)}, "torch", "warn", "CUDA build"),
    ("driver does not answer", {"gpu_error": "no devices"}, "gpu", "fail", "nvidia-smi"),
    (
        "old driver",
        {"gpus": (H100,), "driver": "535.1", "torch_cuda": "13.2"},
        "gpu",
        "fail",
        "580",
    ),
    (
        "no flashinfer on a GPU",
        GPU | {"packages": GOOD_PACKAGES | {"flashinfer-python": None}},
        "flashinfer",
        "warn",
        "dopd[gpu]",
    ),
    (
        "flashinfer without a compiler",
        GPU | {"compilers_missing": ("nvcc",)},
        "flashinfer",
        "warn",
        "CUDA toolkit",
    ),
    (
        "kernels of another flashinfer",
        GPU | {"packages": GOOD_PACKAGES | {"flashinfer-jit-cache": "0.6.17+cu130.sm90a"}},
        "flashinfer",
        "fail",
        "dopd kernels",
    ),
    (
        "port in use",
        {"ports": (Port("http.port", "--port", "127.0.0.1:8000", "nginx (pid 7)"),)},
        "port 8000",
        "fail",
        "--port",
    ),
    (
        "port of root",
        {"ports": (Port("http.port", "--port", "127.0.0.1:80", error="permission denied"),)},
        "port 80",
        "fail",
        "--port",
    ),
    ("no loopback", {"loopback_error": "timed out"}, "loopback", "fail", "ip link"),
    (
        "proxy before loopback",
        {"proxies": ("HTTP_PROXY",), "no_proxy_loopback": False},
        "proxy",
        "warn",
        "NO_PROXY",
    ),
    ("few open files", {"open_files_soft": 256}, "open files", "fail", "ulimit -n 16384"),
    ("default open files", {"open_files_soft": 1024}, "open files", "warn", "ulimit -n"),
    ("small shm", {"shm_bytes": 1 << 20}, "shared memory", "warn", "--shm-size"),
    ("no shm", {"shm_bytes": None}, "shared memory", "warn", "mount"),
    ("one core", {"cpus": 1}, "cpu", "warn", "cores"),
    (
        "model larger than memory",
        {"model": Model("m", memory_bytes=60 * GIB)},
        "memory",
        "fail",
        "fewer workers",
    ),
    (
        "model larger than the cgroup",
        {"model": Model("m", memory_bytes=4 * GIB), "cgroup_limit": 8 * GIB},
        "memory",
        "fail",
        "fewer workers",
    ),
    (
        "memory held by others",
        {"model": Model("m", memory_bytes=4 * GIB), "memory_available": 2 * GIB},
        "memory",
        "warn",
        "other programs",
    ),
    ("clock of 1970", {"clock_s": 12.0}, "clock", "fail", "set-ntp"),
    ("clock that jumps", {"clock_drift_s": -3.0}, "clock", "warn", "timedatectl"),
    ("read-only temp", {"temp_error": "read-only file system"}, "disk", "fail", "TMPDIR"),
    ("full disk", {"temp_free": 1024}, "disk", "warn", "TMPDIR"),
    (
        "wrong settings",
        {"config_file": "a.toml", "config_problems": ("a.toml:1:1: unknown table",)},
        "settings",
        "fail",
        "config check",
    ),
    ("model missing", {"model": Model("m", exists=False)}, "model", "fail", "smollm2"),
    (
        "other architecture",
        {"model": Model("m", config_problem="T5 is not supported")},
        "model config",
        "fail",
        "fetch",
    ),
    (
        "no tokenizer",
        {"model": Model("m", tokenizer_problem="tokenizer.json: no such file")},
        "model tokenizer",
        "fail",
        "fetch",
    ),
    ("no template", {"model": Model("m", has_template=False)}, "model template", "warn", "jinja"),
    (
        "weights cut off",
        {"model": Model("m", weight_problems=("a.safetensors: has 5 of 9 bytes",))},
        "model weights",
        "fail",
        "fetch",
    ),
    ("model on NFS", {"model": Model("m", filesystem="nfs4")}, "model disk", "warn", "local disk"),
)


def test_a_machine_where_everything_is_fine_has_no_finding() -> None:
    findings = checks.diagnose(dataclasses.replace(GOOD, model=Model("m")))
    assert {finding.level for finding in findings} == {"ok"}
    assert "none" in next(f.text for f in findings if f.name == "gpu")


@pytest.mark.parametrize(
    ("seed", "name", "level", "fix"), [row[1:] for row in SEEDED], ids=[row[0] for row in SEEDED]
)
def test_each_seeded_misconfiguration_is_found_with_its_fix(
    seed: dict[str, Any], name: str, level: str, fix: str
) -> None:
    findings = checks.diagnose(dataclasses.replace(GOOD, **seed))
    bad = [finding for finding in findings if finding.level != "ok"]
    assert [(finding.name, finding.level) for finding in bad] == [(name, level)]
    assert fix in (bad[0].fix or "")


def test_kernels_compiled_ahead_need_no_compiler() -> None:
    packages = GOOD_PACKAGES | {"flashinfer-jit-cache": "0.6.18+cu130.sm90a"}
    facts = {**GPU, "packages": packages, "compilers_missing": ("nvcc", "ninja")}
    found = checks.diagnose(dataclasses.replace(GOOD, **facts))
    (finding,) = [one for one in found if one.name == "flashinfer"]
    assert finding.level == "ok"
    assert "compiled ahead, 0.6.18+cu130.sm90a" in finding.text


def test_a_port_of_a_running_dopd_is_fine() -> None:
    port = Port("http.port", "--port", "127.0.0.1:8000", "dopd serve (pid 7)", is_dopd=True)
    findings = checks.diagnose(dataclasses.replace(GOOD, ports=(port,)))
    assert all(finding.level == "ok" for finding in findings)
    assert any("running dopd" in finding.text for finding in findings)


def test_least_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert dict(d.split(">=") for d in project["dependencies"]) == checks.PACKAGES_MIN
    assert project["requires-python"] == ">=" + ".".join(map(str, checks.PYTHON_MIN))
    torch = next(d for d in project["optional-dependencies"]["worker"] if d.startswith("torch"))
    assert torch.startswith(f"torch>={checks.TORCH_MIN},")


def test_the_holder_of_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        held = ports.look("http.port", "--port", "127.0.0.1", port)
    assert f"(pid {os.getpid()})" in (held.holder or "")
    assert not held.is_dopd
    assert ports.look("http.port", "--port", "127.0.0.1", port).holder is None
    assert ports.look("http.port", "--port", "203.0.113.7", port).error
    assert ports.loopback_error() is None


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder in two files, as complete as doctor looks at."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "chat_template.jinja").write_text("x")
    names = ("a.safetensors", "b.safetensors")
    for name in names:
        header = json.dumps({name: {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}})
        data = struct.pack("<Q", len(header)) + header.encode() + bytes(16)
        (tmp_path / name).write_bytes(data)
    index = {"weight_map": {name: name for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_a_complete_model_folder_is_fine(folder: Path) -> None:
    found = model.look(folder)
    assert (found.config_problem, found.tokenizer_problem) == (None, None)
    assert (found.weight_problems, found.has_template) == ((), True)
    # 16 weights, in float32.
    assert found.memory_bytes == 64


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "name", "text"),
    [
        (lambda f: (f / "b.safetensors").unlink(), "model weights", "b.safetensors: No such"),
        (lambda f: cut(f / "a.safetensors"), "model weights", "it is not complete"),
        (lambda f: (f / "a.safetensors").write_bytes(b"<html>404"), "model weights", "a.safe"),
        (lambda f: (f / "tokenizer.json").unlink(), "model tokenizer", "no such file"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "model tokenizer", "no JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "model config", "architecture"),
        (lambda f: (f / "chat_template.jinja").unlink(), "model template", "no chat template"),
    ],
)
def test_what_is_missing_in_a_model_folder_is_found(
    folder: Path, spoil: Any, name: str, text: str
) -> None:
    spoil(folder)
    findings = checks.diagnose(dataclasses.replace(GOOD, model=model.look(folder)))
    bad = [finding for finding in findings if finding.level != "ok"]
    assert [finding.name for finding in bad] == [name]
    assert text in bad[0].text


def test_a_gguf_that_is_cut_off_is_found(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<I", 3))
    assert model.look(file).weight_problems


def test_facts_of_this_machine_can_be_gathered_and_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("dopd._router", reason="the extension is not built")
    wrong = tmp_path / "dopd.toml"
    wrong.write_text("[http]\nprot = 1\n")
    found = gather.facts(str(tmp_path / "none"), wrong)
    assert found.config_problems == (
        f'{wrong}:2:1: unknown setting "http.prot", did you mean "port"',
    )
    assert found.model is not None and not found.model.exists
    assert found.memory_available <= found.memory_total
    assert app.run(["doctor", "--config", str(wrong), "--json"]) == console.UNHEALTHY
    told = json.loads(capsys.readouterr().out)
    assert not told["is_healthy"]
    assert {finding["level"] for finding in told["findings"]} <= {"ok", "warn", "fail"}


def test_the_report_has_a_line_a_finding_and_a_fix_for_each_bad_one() -> None:
    findings = checks.diagnose(dataclasses.replace(GOOD, cpus=1, extension=None))
    text = doctor.render(findings, in_colour=False)
    assert text.count("fix:") == 2
    assert text.endswith(f"{len(findings) - 2} ok, 1 warning, 1 failed")
    assert "\x1b[" in doctor.render(findings, in_colour=True)


@pytest.mark.parametrize("header", [b"[]", b'"x"', b'{"a":{"dtype":"F32","data_offsets":[]}}'])
def test_weights_with_a_header_of_another_kind_are_a_finding(folder: Path, header: bytes) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(struct.pack("<Q", len(header)) + header)
    assert model.look(folder).weight_problems


def test_a_path_that_no_file_can_have_is_no_model() -> None:
    assert not model.look(Path("a" * 300)).exists


def test_a_command_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "COMMAND_TIMEOUT_S", 0.01)
    done = gather._run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert (done.returncode, "within 0.01 s" in done.stderr) == (1, True)
