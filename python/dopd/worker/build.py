"""Puts a worker together: engine, desk, transport, attach."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dopd import __version__, env, wire
from dopd.engine.base import Engine
from dopd.engine.timings import Timings
from dopd.errors import ConfigError
from dopd.kv.base import CPU
from dopd.kv.size import parse_memory
from dopd.sched.batch import Batcher
from dopd.sched.limits import SeatLimits
from dopd.sched.pages import PageAllocator
from dopd.sched.seats import Seats
from dopd.transfer.base import LinkIdentity
from dopd.transfer.pairing import Transports
from dopd.types import Grant, Role, WorkerFacts
from dopd.worker.attach import Attach
from dopd.worker.config import WorkerConfig
from dopd.worker.desk import Desk
from dopd.worker.loop import StepLoop
from dopd.worker.memory import KvMemory
from dopd.worker.progress import Progress
from dopd.worker.transports import SYSTEM, Libraries, open_transports

if TYPE_CHECKING:
    from dopd.worker.spans import Spans

MOCK_KV_MEMORY = "8MiB"
# Of a GPU for the streams of one process, the most that CUDA knows; it reads the number when it
# starts. Of its 8, NCCL's kernels of several links would share some, and wait for each other.
HARDWARE_QUEUES = "32"


@dataclass(frozen=True, slots=True)
class Worker:
    """The parts of one worker, not yet started."""

    desk: Desk
    loop: StepLoop
    transport: Transports
    attach: Attach


def make_engine(config: WorkerConfig) -> Engine:
    """The engine that the settings ask for; torch is imported only for a real model."""
    if config.mock:
        from dopd.engine.mock import ENTRY_BYTES, MAX_MODEL_LEN, MockEngine

        memory_bytes = parse_memory(config.kv_memory or MOCK_KV_MEMORY)
        make: Callable[..., Engine] = MockEngine
        if config.mock_faults:
            from dopd.engine.mock_faults import FaultyEngine, parse_fault

            make = partial(FaultyEngine, [parse_fault(text) for text in config.mock_faults])
        return make(
            max(memory_bytes // (ENTRY_BYTES * config.page_size), 1),
            config.mock_timings,
            model=config.served_model_name or "mock",
            page_size=config.page_size,
            max_model_len=min(config.max_model_len or MAX_MODEL_LEN, MAX_MODEL_LEN),
        )
    if config.device != CPU:
        env.set_foreign("CUDA_DEVICE_MAX_CONNECTIONS", HARDWARE_QUEUES)
    try:
        from dopd.engine.load import load
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a real model needs the package {error.name}: pip install 'dopd[worker]'"
        ) from error

    assert config.model is not None
    return load(
        config.model,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.batch_tokens("cuda"),
        gpu_memory_utilization=config.gpu_memory_utilization,
        cuda_graphs=config.cuda_graphs,
        cascade=config.cascade_attention,
        kv_memory=config.kv_memory,
        max_model_len=config.max_model_len,
        page_size=config.page_size,
        threads=config.threads,
        name=config.served_model_name,
        timings=Timings.read(config.timings) if config.timings else None,
        progress=Progress(sys.stderr),
    )


def make_spans(config: WorkerConfig) -> Spans | None:
    """The exporter of spans, if one is asked for; OpenTelemetry is imported only then."""
    if config.otel is None:
        return None
    try:
        from dopd.worker.spans import Spans
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--otel needs the package {error.name}: pip install 'dopd[otel]'"
        ) from error
    return Spans(config.otel, config.name, config.role.value)


def make_desk(
    engine: Engine,
    role: Role,
    ticket: Grant,
    max_num_seqs: int,
    max_batch_tokens: int,
    clock: Callable[[], float] = time.monotonic,
    *,
    is_poisoning: bool = False,
) -> Desk:
    """A desk over the engine's pool. `ticket`: how our grants look, without a nonce.

    is_poisoning: see `KvMemory`.
    """
    limits = SeatLimits(
        ticket=ticket,
        max_seats=max_num_seqs,
        page_size=engine.geometry.page_size,
        page_bytes=engine.geometry.page_bytes,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        eos_token_ids=engine.eos_token_ids,
    )
    pages = PageAllocator(engine.pool.num_pages)
    seats = Seats(limits, pages, draw=lambda: secrets.randbits(64))
    memory = KvMemory(engine.pool, seats, is_poisoning)
    batcher = Batcher(max_batch_tokens, max_num_seqs, engine.cost_us)
    return Desk(seats, batcher, memory, role, clock)


def make_worker(config: WorkerConfig, engine: Engine, libraries: Libraries = SYSTEM) -> Worker:
    """A worker around an engine. Raises ConfigError if no transport can be opened."""
    incarnation = secrets.randbits(64)
    max_batch_tokens = config.batch_tokens(engine.device)
    # The address is known only when the transport listens, and the transport needs the desk.
    desk = make_desk(
        engine,
        config.role,
        Grant(config.name, incarnation, (), 0),
        config.max_num_seqs,
        max_batch_tokens,
        is_poisoning=config.kv_poison,
    )
    desk.is_audited = config.debug_checks
    identity = LinkIdentity(
        config.name, incarnation, wire.layout_hash(engine.geometry), config.join_token
    )
    transport = open_transports(config, identity, engine.pool, desk.links, libraries)
    desk.links.set_transport(transport)
    endpoints = transport.endpoints
    facts = WorkerFacts(
        worker=config.name,
        incarnation=incarnation,
        role=config.role,
        geometry=engine.geometry,
        pages_total=engine.pool.num_pages,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        model=engine.model,
        device=engine.device,
        data_address=next((e for e in endpoints if e.transport == "tcp"), endpoints[0]).address,
        transports=tuple(endpoint.transport for endpoint in endpoints),
        pid=os.getpid(),
        timings_json=engine.timings_json,
        version=__version__,
    )
    attach = Attach(config.join, config.join_token, facts, desk)
    return Worker(desk, StepLoop(desk, engine), transport, attach)
