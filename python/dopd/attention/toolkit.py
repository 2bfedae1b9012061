"""Where the CUDA compiler lies, and whether all of it is there. Called by `dopd kernels`.

A toolkit is a CUDA installation (CUDA_HOME, or nvcc on the PATH), or wheels of NVIDIA that install
into one folder, `nvidia/cu13`. Nothing here needs a GPU, a driver or FlashInfer.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dopd import env
from dopd.errors import ConfigError

# Where wheels for CUDA 13 put everything, and which of them brings what FlashInfer compiles with.
WHEELS = Path("cu13")
PARTS = {
    "bin/nvcc": "nvidia-cuda-nvcc",
    "include/crt/host_config.h": "nvidia-cuda-crt",
    "nvvm/bin/cicc": "nvidia-nvvm",
    "include/cuda_runtime.h": "nvidia-cuda-runtime",
    "include/curand_kernel.h": "nvidia-curand",
    "include/cublasLt.h": "nvidia-cublas",
}
# These are one compiler, and of one release; the others have versions of their own.
ONE_RELEASE = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime")
# Kernels of this release run with every CUDA 13 that torch comes with.
OLDEST_RELEASE = "13.0"
LINK_S = 60.0

Version = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Toolkit:
    """home: has `bin/nvcc`. is_of_wheels: its libraries are the ones of pip's `nvidia` packages."""

    home: Path
    ninja: Path
    is_of_wheels: bool


def installed(package: str) -> str | None:
    """Version of a package, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find(version: Version = installed) -> Toolkit:
    """The toolkit of this machine. Raises ConfigError that names what is missing."""
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja is None:
        raise ConfigError("ninja cannot be found, which runs the compiler: pip install ninja")
    compiler = host_compiler()
    if shutil.which(compiler) is None:
        raise ConfigError(f"{compiler} cannot be found, which nvcc needs: install g++, or set CXX")
    given = env.foreign("CUDA_HOME") or env.foreign("CUDA_PATH")
    if given:
        if not (Path(given) / "bin/nvcc").exists():
            raise ConfigError(
                f"CUDA_HOME is {given}, which has no bin/nvcc: install the CUDA toolkit there, or "
                f"unset it and {_pip(list(PARTS.values()), version)}"
            )
        return Toolkit(Path(given), Path(ninja), is_of_wheels=False)
    if on_path := shutil.which("nvcc"):
        return Toolkit(Path(on_path).resolve().parents[1], Path(ninja), is_of_wheels=False)
    return Toolkit(_of_wheels(version), Path(ninja), is_of_wheels=True)


def host_compiler() -> str:
    """What compiles and links the part for the CPU, as FlashInfer chooses it."""
    return env.foreign("CXX") or "c++"


def make_stubs(toolkit: Toolkit, folder: Path) -> Path:
    """A folder to link against: the driver's library, which is not here, and the runtime's name.

    Nothing of it is loaded or carried away. Raises ConfigError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    driver = folder / "libcuda.so"
    if not driver.exists():
        command = [host_compiler(), "-shared", "-nostdlib", "-x", "c", "/dev/null"]
        command += ["-Wl,-soname,libcuda.so.1", "-o", str(driver)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LINK_S, check=False)
        if done.returncode != 0:
            raise ConfigError(f"{host_compiler()} cannot link a library: {done.stderr.strip()}")
    if toolkit.is_of_wheels:
        # Wheels bring the library under the name it is loaded by alone.
        runtime = next((toolkit.home / "lib").glob("libcudart.so.*"), None)
        if runtime is None:
            raise ConfigError(f"{toolkit.home}/lib has no libcudart: reinstall nvidia-cuda-runtime")
        link = folder / "libcudart.so"
        link.unlink(missing_ok=True)
        link.symlink_to(runtime)
    return folder


def _of_wheels(version: Version) -> Path:
    homes = [home for home in _homes() if (home / "bin/nvcc").exists()]
    if not homes:
        raise ConfigError(
            "no nvcc: CUDA_HOME is not set, none is on the PATH and no wheel brought one: "
            f"{_pip(list(PARTS.values()), version)}"
        )
    missing = [package for part, package in PARTS.items() if not (homes[0] / part).exists()]
    if missing:
        raise ConfigError(
            f"{homes[0]} lacks what {', '.join(missing)} bring{'s' * (len(missing) == 1)}: "
            f"{_pip(missing, version)}"
        )
    versions = {package: version(package) or "" for package in ONE_RELEASE}
    if len({_release(one) for one in versions.values()}) > 1:
        told = ", ".join(f"{package} {one or 'not installed'}" for package, one in versions.items())
        raise ConfigError(
            f"the compiler's parts are of several releases ({told}): "
            f"{_pip(list(ONE_RELEASE), version)}"
        )
    return homes[0]


def _homes() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder) / WHEELS


def _release(version: str) -> str:
    """The first two numbers of a version."""
    return ".".join(version.split(".")[:2])


def _pip(packages: list[str], version: Version) -> str:
    """The line that installs these, for the CUDA of the torch that is here if that is one."""
    release = _release(version("nvidia-cuda-runtime") or OLDEST_RELEASE)
    words = [f"'{one}=={release}.*'" if one in ONE_RELEASE else one for one in packages]
    return "pip install " + " ".join(words)
