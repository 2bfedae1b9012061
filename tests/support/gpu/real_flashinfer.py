"""FlashInfer itself, for tests that need a GPU; they are skipped, with the reason, without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def require() -> Iterator[None]:
    """It is there, on a CUDA device; a wheel that is there and fails to load is a failure."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("flashinfer", reason="no flashinfer-python")
    yield
