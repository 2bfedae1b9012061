"""libnccl's double, compiled and loaded: `StubNccl`, beside the `StubCuda` of the same process."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Sequence
from pathlib import Path

from dopd.transfer.nccl import Nccl
from tests.support.gpu.cuda import StubCuda, built

SOURCE = Path(__file__).with_name("stub_nccl.c")


class StubNccl:
    """One loaded copy of the double: that of one process."""

    def __init__(self, folder: Path, cuda: StubCuda) -> None:
        self.path = folder / f"nccl-{cuda.path.name}"
        shutil.copy(built(SOURCE), self.path)
        self.library = ctypes.CDLL(str(self.path))
        for name in ("stub_live", "stub_calls"):
            getattr(self.library, name).restype = ctypes.c_long
        assert self.library.stub_cuda_at(str(cuda.path).encode()) == 0
        self.nccl = Nccl.load(str(self.path))

    def fail(self, name: str, nth: int = 1, code: int = 3) -> None:
        """The nth call of a function from now on fails, once."""
        self.library.stub_fail(name.encode(), ctypes.c_long(nth), code)

    def hang(self, name: str, *, is_hung: bool = True) -> None:
        """What does not come to an end: "join", "launch", "abort"."""
        self.library.stub_hang(name.encode(), int(is_hung))

    def delay(self, seconds: float) -> None:
        """A group is launched so long after its end."""
        self.library.stub_delay(ctypes.c_long(int(seconds * 1e6)))

    def calls(self, name: str) -> int:
        """How often a function was called."""
        return int(self.library.stub_calls(name.encode()))

    def live(self, names: Sequence[str] = ("comms", "roots", "groups")) -> dict[str, int]:
        """What was not given back."""
        return {name: int(self.library.stub_live(name.encode())) for name in names}

    def check(self) -> None:
        """Nothing was done that the library would not forgive."""
        text = ctypes.create_string_buffer(256)
        count = self.library.stub_violations(text, ctypes.c_size_t(len(text)))
        assert count == 0, f"{count} violations, the last one: {text.value.decode()}"

    def forgive(self) -> str:
        """What was done wrong last; from now on `check` knows nothing of it."""
        text = ctypes.create_string_buffer(256)
        self.library.stub_violations(text, ctypes.c_size_t(len(text)))
        self.library.stub_forgive()
        return text.value.decode()
