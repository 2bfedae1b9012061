"""Gathers the facts of this machine. The only place of doctor that looks at anything."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from dopd import __version__, env
from dopd.cli import gpus, native
from dopd.cli.doctor import checks, model, ports
from dopd.cli.doctor.facts import Facts, Gpu, Port
from dopd.kv.machine import cgroup_limit

COMMAND_TIMEOUT_S = 20.0
OPTIONAL = (
    *("torch", "safetensors", "gguf", "nvidia-nccl-cu12", "nvidia-nccl-cu13"),
    *("flashinfer-python", "flashinfer-jit-cache"),
)
# What FlashInfer compiles its kernels with, at their first use.
COMPILERS = ("nvcc", "ninja")
PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
LISTENERS = (
    ("http.port", "http.host", "--port"),
    ("grpc.port", "http.host", "--grpc-port"),
    ("workers.port", "workers.host", "--worker-port"),
    ("admin.port", "admin.host", "--metrics-port"),
)


def facts(words: str | None, config: Path | None) -> Facts:
    """Everything about this machine; `words` is MODEL, `config` the settings file."""
    wall, steady = time.time(), time.monotonic()
    config = config or (Path(named) if (named := env.get("CONFIG")) else None)
    settings, problems = _settings(config)
    is_mock = settings.get("cluster.mock") is True
    asked = words or settings.get("model.path")
    extension, extension_error = _extension()
    found, driver, gpu_error = _gpus()
    temp_dir, temp_error, temp_free = _temp()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    total, available = _memory()
    shm = Path("/dev/shm")
    return Facts(
        dopd=__version__,
        python=sys.version_info[:3],
        extension=extension,
        extension_error=extension_error,
        packages={name: _version(name) for name in (*checks.PACKAGES_MIN, *OPTIONAL)},
        torch_cuda=gpus.torch_cuda(),
        gpus=found,
        gpu_error=gpu_error,
        driver=driver,
        compilers_missing=tuple(name for name in COMPILERS if not shutil.which(name)),
        ports=tuple(_ports(settings)),
        loopback_error=ports.loopback_error(),
        open_files_soft=soft,
        open_files_hard=hard,
        memory_total=total,
        memory_available=available,
        cgroup_limit=cgroup_limit(),
        shm_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        cpus=len(os.sched_getaffinity(0)),
        temp_dir=temp_dir,
        temp_error=temp_error,
        temp_free=temp_free,
        proxies=tuple(name for name in PROXIES if env.foreign(name)),
        no_proxy_loopback=_is_loopback_exempt(),
        config_file=str(config) if config else None,
        config_problems=tuple(problems),
        workers=_workers(settings),
        model=None if is_mock or not asked else model.look(_resolve(str(asked))),
        clock_s=time.time(),
        clock_drift_s=(time.time() - wall) - (time.monotonic() - steady),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extension() -> tuple[str | None, str | None]:
    """Version of the router inside the package, or why it cannot be loaded."""
    try:
        from dopd import _router
    except ImportError as error:
        return None, str(error)
    return _router.version, None


def _gpus() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """Devices, driver and error, as nvidia-smi tells them; nothing if it is not installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None, None
    query = "--query-gpu=index,name,memory.total,driver_version"
    command = [program, query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), None, str(error)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0:
        return (), None, (lines or done.stderr.strip().splitlines() or ["no reason given"])[0]
    found, driver = [], None
    for line in lines:
        index, name, memory_mib, driver = (cell.strip() for cell in line.split(","))
        found.append(Gpu(int(index), name, int(memory_mib) << 20 if memory_mib.isdigit() else 0))
    return tuple(found), driver, None


def _settings(config: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Values by path as `serve` would have them, or what is wrong with them."""
    command = [sys.executable, "-m", "dopd", "config"]
    given = ["--config", str(config)] if config else []
    done = _run([*command, "show", "--json", *given])
    if done.returncode == 0:
        found = json.loads(done.stdout)["settings"]
        return {setting["path"]: setting["value"] for setting in found}, []
    if config:
        done = _run([*command, "check", str(config)]) if config.exists() else done
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line]
    # Without an extension there is nothing to read settings with; its own check says so.
    return {}, [line for line in lines if not line.startswith("  fix:")] if _extension()[0] else []


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        late = f"{' '.join(command[2:])} did not answer within {COMMAND_TIMEOUT_S:g} s"
        return subprocess.CompletedProcess(command, 1, "", late)


def _ports(settings: dict[str, Any]) -> list[Port]:
    found = []
    for setting, host, flag in LISTENERS:
        port = settings.get(setting)
        # 0 picks a free one.
        if port:
            found.append(ports.look(setting, flag, str(settings[host]), int(port)))
    return found


def _workers(settings: dict[str, Any]) -> int:
    roles = ("cluster.prefill", "cluster.decode", "cluster.mixed")
    return sum(int(settings.get(role) or 0) for role in roles) if settings else 2


def _resolve(name: str) -> Path:
    if name in native.PACKAGED_MODELS:
        return Path(native.packaged_model(name) or name)
    return Path(name)


def _memory() -> tuple[int, int]:
    """All and available memory in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    total, available = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return total, available


def _temp() -> tuple[str, str | None, int]:
    """The folder for temporary files, why it cannot be written, and its free bytes."""
    try:
        folder = tempfile.gettempdir()
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
        return folder, None, shutil.disk_usage(folder).free
    except OSError as error:
        return env.foreign("TMPDIR") or "/tmp", error.strerror or str(error), 0


def _is_loopback_exempt() -> bool:
    named = f"{env.foreign('NO_PROXY') or ''},{env.foreign('no_proxy') or ''}".split(",")
    return any(name.strip() in ("*", "127.0.0.1", "localhost") for name in named)
