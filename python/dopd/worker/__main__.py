"""`python -m dopd.worker`: one worker process.

Exit codes: 0 ended as asked, 1 failed (worth a restart), 2 usage, configuration, model, or refused
by the router for good (not worth one).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from dopd.errors import ConfigError
from dopd.worker import args, lifecycle, logs
from dopd.worker.build import make_engine, make_spans, make_worker

EXIT_OK, EXIT_USAGE = 0, 2

log = logging.getLogger("dopd.worker")


def main(argv: Sequence[str]) -> int:
    """Run a worker to its end; returns the exit code."""
    lifecycle.ignore_interrupts()
    try:
        config = args.parse(argv)
        is_supervised = config.exit_on_stdin_eof
        logs.set_up(config.name, config.log_level, config.log_format, is_prefixed=is_supervised)
        log.info("loading %s", config.model or "the mock model")
        engine = make_engine(config)
        worker = make_worker(config, engine)
        spans = make_spans(config)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    if spans is not None:
        worker.desk.observer = spans
    lifecycle.drain_on_terminate(worker.desk, config.drain_timeout)
    lifecycle.end_if_stuck(worker.desk)
    if config.exit_on_stdin_eof:
        lifecycle.stop_on_stdin_eof(worker.desk)
    log.info("%d KV pages, attaching to %s", engine.pool.num_pages, config.join)
    worker.transport.start()
    worker.attach.start()
    try:
        worker.loop.run()
    except Exception:
        # The device is unusable: our end is noticed at once, and every request goes on elsewhere.
        log.exception("the device %s cannot be used any more: this worker ends", engine.device)
        # The interpreter's own end would ask that device to finish, and wait for threads that do.
        lifecycle.leave()
    worker.attach.close()
    worker.transport.close()
    if spans is not None:
        spans.close()
    if worker.attach.refusal is not None:
        sys.stderr.write(f"error: the router refuses this worker: {worker.attach.refusal}\n")
        return EXIT_USAGE
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
