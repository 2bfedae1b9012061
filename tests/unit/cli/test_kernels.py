"""dopd kernels: what it is told, passes on and says; FlashInfer and nvcc are doubles."""

from __future__ import annotations

import json
import os
import signal
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dopd.attention import choose, toolkit
from dopd.attention.compile import Kernel
from dopd.cli import app, console
from dopd.errors import ConfigError

NINJA = '#!/bin/sh\necho "$6" > {folder}/jobs\n[ -e "$2.so" ] || echo kernel > "$2.so"\n'
MODULE = "dopd.attention.flashinfer_kernels"


class Kernels:
    """In place of `flashinfer_kernels`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: list[Any] = []
        self.prefill = ""
        self.environment: dict[str, str | None] = {}

    def specs(self, shapes: list[Any], prefill: str) -> list[str]:
        self.shapes, self.prefill = list(shapes), prefill
        names = ("CUDA_HOME", "FLASHINFER_CUDA_ARCH_LIST")
        self.environment = {name: os.environ.get(name) for name in names}
        return ["page", "norm"]

    def prepare(self, spec: str, stubs: Path) -> Kernel:
        assert (stubs / "libcuda.so").exists()
        (self.folder / spec).mkdir(exist_ok=True)
        file = self.folder / spec / "build.ninja"
        return Kernel(spec, file, self.folder / f"{spec}.so", self.folder / "locks" / spec)

    def stubs_folder(self) -> Path:
        return self.folder / "stubs"

    def version(self) -> str:
        return "0.6.18"

    def cuda_version(self) -> str:
        return "13.0"

    def architectures(self) -> list[str]:
        return ["sm90a"]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """A machine with all that is needed, as doubles; the current folder is empty."""
    made = Kernels(tmp_path)
    ninja = tmp_path / "ninja"
    ninja.write_text(NINJA.format(folder=tmp_path))
    ninja.chmod(0o755)
    found = toolkit.Toolkit(tmp_path / "cuda", ninja, is_of_wheels=False)
    monkeypatch.setattr(toolkit, "find", lambda: found)
    monkeypatch.setattr(choose, "flashinfer", lambda: SimpleNamespace())
    monkeypatch.setitem(sys.modules, MODULE, made)
    for name in ("CUDA_HOME", "FLASHINFER_CUDA_ARCH_LIST", "MAX_JOBS", "DOPD_FLASHINFER_PREFILL"):
        # Set first: what the command sets is taken back afterwards.
        monkeypatch.setenv(name, "")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def test_a_wheel_is_made_and_the_next_run_compiles_nothing(
    kernels: Kernels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["kernels", "random:tiny"]) == console.OK
    shown = capsys.readouterr()
    name = shown.out.split()[0]
    assert name.startswith("flashinfer_jit_cache-0.6.18+cu130.sm90a-")
    with zipfile.ZipFile(tmp_path / "here" / name) as wheel:
        assert wheel.read("flashinfer_jit_cache/kernels/norm/norm.so") == b"kernel\n"
    assert "page" in shown.err and f"pip install --no-deps {name}" in shown.err
    assert kernels.environment == {
        "CUDA_HOME": str(tmp_path / "cuda"),
        "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
    }
    assert app.run(["kernels", "random:tiny"]) == console.OK
    assert capsys.readouterr().err.count("was there") == 2


def test_models_and_dtypes_become_shapes(kernels: Kernels, tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64,
        "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "eos_token_id": 2,
    }  # fmt: skip
    folder = tmp_path / "model"
    folder.mkdir()
    # No weights: an image is built before they are there.
    (folder / "config.json").write_text(json.dumps(config))
    words = ["kernels", "random:llama-3.1-8b", str(folder), "--dtype=auto", "--dtype", "float16"]
    assert app.run([*words, "--jobs", "5", "--arch", "8.0,9.0a"]) == console.OK
    told = [
        (one.num_heads, one.num_kv_heads, one.head_dim, str(one.dtype)) for one in kernels.shapes
    ]
    assert told == [
        (32, 8, 128, "torch.bfloat16"),
        (32, 8, 128, "torch.float16"),
        (4, 1, 128, "torch.bfloat16"),
        (4, 1, 128, "torch.float16"),
    ]
    assert kernels.prefill == "fa2"
    assert kernels.environment["FLASHINFER_CUDA_ARCH_LIST"] == "8.0 9.0a"
    assert (tmp_path / "jobs").read_text() == "5\n"


def test_the_environment_of_workers_is_heeded(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOPD_FLASHINFER_PREFILL", "fa3")
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "8.0 9.0a")
    monkeypatch.setenv("MAX_JOBS", "7")
    assert app.run(["kernels", "random:tiny"]) == console.OK
    assert kernels.prefill == "fa3"
    assert kernels.environment["FLASHINFER_CUDA_ARCH_LIST"] == "8.0 9.0a"
    assert (tmp_path / "jobs").read_text() == "7\n"


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["random:tiny", "--arch", "H100"], {}, "--arch 'H100' is no compute capability"),
        (["random:tiny", "--arch", ","], {}, "--arch '' is no compute capability"),
        (["random:tiny", "--arch", "7.5"], {}, "--arch '7.5' is no compute capability"),
        (["random:tiny", "--jobs", "-1"], {}, "--jobs is -1, must be 1 to 1024"),
        (["random:tiny", "--out", "nowhere"], {}, "nowhere is no folder"),
        (["random:big"], {}, "no such shape"),
        (["no-such-folder"], {}, "no-such-folder"),
        (
            ["random:tiny", "--arch", "8.0"],
            {"FLASHINFER_CUDA_ARCH_LIST": "9.0a"},
            "--arch is 8.0 and FLASHINFER_CUDA_ARCH_LIST '9.0a': give one of them",
        ),
        (["random:tiny"], {"DOPD_FLASHINFER_PREFILL": "fa4"}, "'fa4', none of fa2, fa3"),
        (
            ["random:tiny", "--arch", "8.0"],
            {"DOPD_FLASHINFER_PREFILL": "fa3"},
            "fa3, which is for --arch 9.0a alone",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str],
    environment: dict[str, str],
    told: str,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert app.run(["kernels", *words]) == console.USAGE
    assert told in capsys.readouterr().err
    assert not kernels.shapes


def test_a_model_without_kernels_is_refused_before_anything_is_compiled(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dopd.attention.flashinfer_shape.HEAD_DIMS", (128,))
    assert app.run(["kernels", "random:tiny"]) == console.USAGE
    assert "no kernels for heads of 64" in capsys.readouterr().err
    assert not kernels.shapes


def test_what_is_missing_is_named(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ConfigError("no nvcc: pip install nvidia-cuda-nvcc")

    monkeypatch.setattr(toolkit, "find", missing)
    assert app.run(["kernels", "random:tiny"]) == console.USAGE
    assert "pip install nvidia-cuda-nvcc" in capsys.readouterr().err


def test_a_wheel_that_cannot_be_written_is_told(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dopd.attention.kernel_wheel.write", full)
    assert app.run(["kernels", "random:tiny"]) == console.FAILED
    assert "the wheel cannot be written: [Errno 28] No space" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_ends_the_compiler_as_well(name: str, kernels: Kernels, tmp_path: Path) -> None:
    """Even one that comes before the compiler's start is over."""
    ninja = tmp_path / "ninja"
    ninja.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid; kill -{name} $PPID; while :; do sleep 0.05; done\n"
    )
    number = signal.Signals[f"SIG{name}"]
    before = signal.signal(number, lambda *_: pytest.fail(f"nobody heeds {name}"))
    own = signal.getsignal(number)
    try:
        assert app.run(["kernels", "random:tiny"]) == console.INTERRUPTED
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
