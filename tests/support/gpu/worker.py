"""A mock worker whose KV is on a double's GPU, in a process of its own.

`-m tests.support.gpu.worker FOLDER WORDS...`, words as of `dopd worker`. FOLDER: the device memory
of all processes of the test.

Ends as the worker does, or with 70 if one of the libraries was used wrongly or not given back.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from dopd.engine.mock import MockEngine
from dopd.worker import __main__ as worker
from dopd.worker.build import make_engine, make_worker
from dopd.worker.config import WorkerConfig
from dopd.worker.transports import Libraries
from tests.support.gpu.machine import StubGpu
from tests.support.links import wait_for

EXIT_WRONG = 70


def libraries_of(gpu: StubGpu) -> Libraries:
    """Where the doubles are."""
    return Libraries(str(gpu.cuda.path), str(gpu.nccl.path))


def on_gpu(engine: MockEngine, gpu: StubGpu) -> MockEngine:
    """The same engine, its pages on the device: it sees them as a kernel would, others do not."""
    pool = gpu.pool(engine.pool.num_pages, engine.pool.page_bytes)
    engine.pool, engine._memory = pool.own, pool.memory
    return engine


def main(folder: Path, words: list[str]) -> int:
    gpu = StubGpu(folder)

    def make(config: WorkerConfig) -> MockEngine:
        engine = make_engine(config)
        assert isinstance(engine, MockEngine)
        return on_gpu(engine, gpu)

    worker.make_engine = make
    worker.make_worker = partial(make_worker, libraries=libraries_of(gpu))
    code = worker.main(words)
    try:
        wait_for(lambda: not gpu.left(), gpu.left)
        gpu.check()
    except AssertionError as error:
        print(f"the doubles: {error}", file=sys.stderr)
        return EXIT_WRONG
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
