"""What doctor knows of a machine: plain values, so that every check can be tried on any of them."""

from __future__ import annotations

from dataclasses import dataclass, field

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Port:
    """One listener: its setting, and who has its port. `holder` None: free; "": nobody knows."""

    setting: str
    flag: str
    address: str
    holder: str | None = None
    is_dopd: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as the driver tells it."""

    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Model:
    """The model that was asked about. `problems` are what a worker or the router would refuse."""

    path: str
    exists: bool = True
    kind: str = "safetensors"
    config_problem: str | None = None
    tokenizer_problem: str | None = None
    has_template: bool = True
    weight_problems: tuple[str, ...] = ()
    weight_bytes: int = GIB
    # Bytes of one worker's weights in memory.
    memory_bytes: int = GIB
    filesystem: str = "ext4"


@dataclass(frozen=True, slots=True)
class Facts:
    """The defaults are those of a machine on which everything is fine."""

    dopd: str = "0.1.0"
    python: tuple[int, int, int] = (3, 12, 0)
    extension: str | None = "0.1.0"
    extension_error: str | None = None
    # By distribution name; None: not installed.
    packages: dict[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str | None = None
    driver: str | None = None
    # Of those that kernels for a GPU are compiled with.
    compilers_missing: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    loopback_error: str | None = None
    open_files_soft: int = 1 << 20
    open_files_hard: int = 1 << 20
    memory_total: int = 64 * GIB
    memory_available: int = 48 * GIB
    cgroup_limit: int | None = None
    shm_bytes: int | None = 8 * GIB
    cpus: int = 16
    # Seconds since 1970, and by how much the clock moved against the monotonic one meanwhile.
    clock_s: float = 1.8e9
    clock_drift_s: float = 0.0
    temp_dir: str = "/tmp"
    temp_error: str | None = None
    temp_free: int = 100 * GIB
    # Proxy variables that name a proxy, and whether loopback is exempt.
    proxies: tuple[str, ...] = ()
    no_proxy_loopback: bool = True
    config_file: str | None = None
    config_problems: tuple[str, ...] = ()
    # Workers that `serve` would start, and whether they would be mocks.
    workers: int = 2
    model: Model | None = None
