"""Libraries of a GPU machine are touched in one file each."""

from __future__ import annotations

import re

import pytest

from tests.support import sources

OWNERS: dict[str, str | tuple[str, ...]] = {
    r"\bnccl[A-Z]\w+|libnccl": "python/dopd/transfer/nccl.py",
    # The compiler's side links against an empty library of the driver's name.
    r"\bcu[A-Z][a-z]\w+\(?|libcuda\b": (
        "python/dopd/transfer/cuda.py",
        "python/dopd/attention/toolkit.py",
    ),
    # The one that computes, and the one that compiles ahead what the first asks for.
    r"^\s*(import|from) flashinfer": (
        "python/dopd/attention/flashinfer.py",
        "python/dopd/attention/flashinfer_kernels.py",
    ),
    r"\bnvml[A-Z]\w+|libnvidia-ml": "python/dopd/cli/gpus.py",
    r"^\s*(import|from) ctypes": ("python/dopd/transfer/", "python/dopd/cli/gpus.py"),
}


@pytest.mark.parametrize("pattern", OWNERS)
def test_a_library_has_one_owner(pattern: str) -> None:
    wanted = re.compile(pattern, re.MULTILINE)
    using = {
        name
        for name in sources.with_suffix(".py")
        if name.startswith("python/dopd/") and "_gen/" not in name and wanted.search(code(name))
    }
    assert using, "the test looks for nothing"
    assert all(name.startswith(OWNERS[pattern]) for name in using), using


def code(name: str) -> str:
    """A file without its comments and texts of several lines."""
    text = re.sub(r'""".*?"""', "", sources.text(name), flags=re.DOTALL)
    return re.sub(r"#.*", "", text)
