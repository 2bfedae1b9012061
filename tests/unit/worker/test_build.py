"""What is set before a library reads it, and what is left alone."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from dopd.errors import ConfigError
from dopd.worker import args
from dopd.worker.build import make_engine

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"


@pytest.mark.parametrize(
    ("device", "of_user", "expected"),
    [
        ("cuda:1", None, "32"),
        ("auto", None, "32"),
        ("cuda:1", "1", "1"),
        ("cpu", None, None),
    ],
)
def test_a_gpu_has_a_queue_for_every_stream_before_cuda_starts(
    monkeypatch: pytest.MonkeyPatch, device: str, of_user: str | None, expected: str | None
) -> None:
    """Where torch is loaded, CUDA may start: it must be there by then."""
    # So that it is as it was afterwards, whoever sets it.
    monkeypatch.setenv(QUEUES, of_user or "")
    if of_user is None:
        monkeypatch.delenv(QUEUES)
    seen: list[str | None] = []

    class Load(ModuleType):
        def __getattr__(self, name: str) -> object:
            seen.append(os.environ.get(QUEUES))
            return lambda *_, **__: None

    monkeypatch.setitem(sys.modules, "dopd.engine.load", Load("dopd.engine.load"))
    words = ["--model", "x", "--role", "mixed", "--join", "127.0.0.1:1", "--device", device]
    make_engine(args.parse(words, join_token="none"))
    assert set(seen) == {expected}


def test_cascade_attention_is_off_unless_asked_for_and_never_silently() -> None:
    words = ["--model", "random:tiny", "--role", "mixed", "--join", "127.0.0.1:1"]
    words += ["--device", "cpu", "--kv-memory", "1MiB"]
    assert not args.parse(words, join_token="none").cascade_attention
    asked = args.parse([*words, "--cascade-attention"], join_token="none")
    with pytest.raises(ConfigError, match="cascade-attention is of FlashInfer's"):
        make_engine(asked)
