"""kernels: compile what workers on a GPU compute with, ahead of time and on any machine.

FlashInfer compiles its kernels at their first use, for minutes, and every worker of a new machine
waits for that. What is compiled here is installed there and found at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dopd import env
from dopd.bar import Bar
from dopd.cli import console
from dopd.errors import ConfigError

if TYPE_CHECKING:
    from dopd.attention.compile import Compiled
    from dopd.attention.flashinfer_shape import Shape
    from dopd.attention.toolkit import Toolkit
    from dopd.weights.config import ModelConfig

EPILOG = """\
Needs FlashInfer, g++ and the CUDA compiler, and no GPU: an installed toolkit (CUDA_HOME, or nvcc on
the PATH), or NVIDIA's wheels, of the release of CUDA that torch is for. With torch 2.15, CUDA 13.2:

  pip install 'dopd[worker,gpu]' ninja nvidia-curand \\
    'nvidia-cuda-nvcc==13.2.*' 'nvidia-cuda-crt==13.2.*' 'nvidia-nvvm==13.2.*'
  dopd kernels ./Llama-3.1-8B-Instruct --arch 9.0a --out wheels
  pip install --no-deps wheels/flashinfer_jit_cache-*.whl     where workers run, or in their image

MODEL needs no weights: a folder with config.json, a .gguf file, or random:NAME. What is compiled
stays in FlashInfer's cache (FLASHINFER_WORKSPACE_BASE); the next run compiles what is not there.
"""
ARCH = re.compile(r"(8|9|1[0-2])\.\d[af]?")
DEFAULT_ARCH = "9.0a"
HOPPER = "9.0a"
AUTO_DTYPE = "bfloat16"
DTYPES = ("auto", "bfloat16", "float16")
JOBS_MAX = 1024
# Any will do: kernels are made for all of them.
PAGE_SIZE = 16


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = console.parser("kernels", "Compile FlashInfer's kernels ahead, into a wheel.")
    made.epilog = EPILOG
    add = made.add_argument
    add("models", nargs="+", metavar="MODEL", help="model that will be served; several are fine")
    add(
        "--arch",
        metavar="LIST",
        help="of the GPUs, several with commas: 8.0 A100, 8.9 L4, 9.0a H100 (default: 9.0a)",
    )
    add(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="as of the workers; repeatable (default: auto, bfloat16)",
    )
    add("--out", type=Path, default=Path(), metavar="DIR", help="write the wheel here (default: .)")
    add("--jobs", type=int, metavar="N", help="compilers at a time (default: MAX_JOBS or the CPUs)")
    return made


def run(argv: list[str]) -> int:
    """Compile, write the wheel, say where it is."""
    args = parser().parse_args(argv[1:])
    jobs, archs = _jobs(args.jobs), _architectures(args.arch)
    # Before the minutes that compiling takes.
    if not (args.out.is_dir() and os.access(args.out, os.W_OK)):
        raise _usage(f"{args.out} is no folder that the wheel can be written to")
    try:
        shapes = _shapes(args.models, args.dtype or ["auto"])
        prefill = _prefill(archs)
        made = _compile(shapes, archs, prefill, jobs)
        wheel = _pack(made, args.out)
    except ConfigError as error:
        raise console.CommandError(str(error), code=console.USAGE) from error
    size = wheel.stat().st_size
    console.say(f"{wheel} ({size / (1 << 20):.1f} MiB)")
    console.note(f"where workers run: pip install --no-deps {wheel.name}")
    return console.OK


def _usage(message: str) -> console.CommandError:
    return console.CommandError(message, fix="dopd kernels --help", code=console.USAGE)


def _jobs(asked: int | None) -> int:
    told = env.foreign("MAX_JOBS") or ""
    jobs = asked or (int(told) if told.isdecimal() else os.cpu_count() or 1)
    if not 1 <= jobs <= JOBS_MAX:
        raise _usage(f"--jobs is {jobs}, must be 1 to {JOBS_MAX}")
    return jobs


def _architectures(asked: str | None) -> list[str]:
    """Compute capabilities as nvcc knows them. FlashInfer is told by the environment alone."""
    told = env.foreign("FLASHINFER_CUDA_ARCH_LIST")
    archs = (asked or told or DEFAULT_ARCH).replace(",", " ").split()
    wrong = next((arch for arch in archs or [""] if not ARCH.fullmatch(arch)), None)
    if wrong is not None:
        raise _usage(f"--arch {wrong!r} is no compute capability, as 8.0, 8.9 or 9.0a")
    if told and sorted(told.split()) != sorted(archs):
        raise _usage(f"--arch is {asked} and FLASHINFER_CUDA_ARCH_LIST {told!r}: give one of them")
    return archs


def _prefill(archs: Sequence[str]) -> str:
    from dopd.attention import choose

    prefill = env.get("FLASHINFER_PREFILL") or choose.PREFILL_KERNELS[0]
    if prefill not in choose.PREFILL_KERNELS:
        raise ConfigError(
            f"DOPD_FLASHINFER_PREFILL is {prefill!r}, none of {', '.join(choose.PREFILL_KERNELS)}"
        )
    if prefill == "fa3" and HOPPER not in archs:
        raise ConfigError(f"DOPD_FLASHINFER_PREFILL is fa3, which is for --arch {HOPPER} alone")
    return prefill


def _shapes(models: Iterable[str], dtypes: Iterable[str]) -> list[Shape]:
    """What FlashInfer is told of each model."""
    from dopd.attention.flashinfer_shape import Shape
    from dopd.engine.torch_device import DTYPES as TORCH

    shapes = []
    for model in models:
        config = _config(model)
        for dtype in dtypes:
            number = TORCH[AUTO_DTYPE if dtype == "auto" else dtype]
            heads = (config.num_heads, config.num_kv_heads, config.head_dim)
            shape = Shape(*heads, PAGE_SIZE, number)
            shape.check()
            shapes.append(shape)
    return shapes


def _config(model: str) -> ModelConfig:
    """Of a folder, config.json will do."""
    from dopd.cli import native
    from dopd.weights import config, made_up
    from dopd.weights.checkpoint import open_checkpoint

    if made := made_up.parse(model):
        return made.config
    packaged = native.packaged_model(model) if model in native.PACKAGED_MODELS else None
    path = Path(packaged or model)
    if (path / "config.json").exists():
        return config.from_folder(path)
    return open_checkpoint(path).config


def _compile(
    shapes: Sequence[Shape], archs: Sequence[str], prefill: str, jobs: int
) -> list[Compiled]:
    from dopd.attention import choose, toolkit
    from dopd.attention.compile import compile_all

    found = toolkit.find()
    _tell_flashinfer(found, archs)
    choose.flashinfer()
    kernels = import_module("dopd.attention.flashinfer_kernels")
    stubs = toolkit.make_stubs(found, kernels.stubs_folder())
    wanted = [kernels.prepare(spec, stubs) for spec in kernels.specs(shapes, prefill)]
    made = []
    with _ends() as ends, Bar("kernels", 1.0) as bar:

        def show(share: float, name: str) -> None:
            if ends:
                raise KeyboardInterrupt
            # The rest of a name tells dtypes and sizes, and fills several lines.
            bar.show(share, name.partition("_dtype_")[0])

        for one in compile_all(wanted, found.ninja, jobs, show):
            took = "was there" if one.seconds is None else f"{one.seconds:.1f} s"
            console.note(f"{took:>9}  {one.num_bytes / (1 << 20):5.2f} MiB  {one.name}")
            made.append(one)
    return made


@contextmanager
def _ends() -> Iterator[list[int]]:
    """SIGINT and SIGTERM that came, in place of what they do.

    Compilers must not outlive this command, and an exception amid the start of one would lose it.
    """
    came: list[int] = []
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(one, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _tell_flashinfer(found: Toolkit, archs: Sequence[str]) -> None:
    """By the environment, which it reads when it is imported."""
    env.set_foreign("CUDA_HOME", str(found.home))
    env.set_foreign("FLASHINFER_CUDA_ARCH_LIST", " ".join(archs))


def _pack(made: Sequence[Compiled], out: Path) -> Path:
    from dopd.attention import kernel_wheel

    kernels = import_module("dopd.attention.flashinfer_kernels")
    try:
        return kernel_wheel.write(
            out,
            {one.name: one.library for one in made},
            flashinfer=kernels.version(),
            cuda=kernels.cuda_version(),
            architectures=kernels.architectures(),
        )
    except OSError as error:
        raise console.CommandError(f"the wheel cannot be written: {error}") from error
