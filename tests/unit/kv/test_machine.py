"""The memory that a pool may take is what the control group allows, not what the machine has."""

from pathlib import Path

import pytest

from dopd.errors import ConfigError
from dopd.kv import machine
from dopd.kv.budget import memory_for
from dopd.kv.machine import cgroup_limit


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> int | None:
    """The limit that a process in these groups has, with these files mounted."""
    (tmp_path / "own").write_text(own, encoding="ascii")
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return cgroup_limit(tmp_path / "own", tmp_path / "mounted")


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "500\n", "a/memory.max": "max\n"}, 500),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "300\n"}, 300),
        ("0::/a/b\n", {"a/b/memory.max": "max\n"}, None),
        ("0::/gone\n", {"memory.max": "200\n"}, 200),
        ("0::/\n", {}, None),
        (
            "5:cpu,cpuacct:/\n4:memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "700\n", "memory/memory.limit_in_bytes": "900\n"},
            700,
        ),
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "600\n"}, 600),
        ("4:memory:/a\n", {"a/memory.limit_in_bytes": "1\n", "memory.max": "1\n"}, None),
    ],
    ids=["v2", "v2 parent", "v2 max", "v2 in a container", "v2 none", "v1", "v1 in a container",
         "other hierarchy"],
)  # fmt: skip
def test_the_least_limit_of_the_groups_counts(
    tmp_path: Path, own: str, files: dict[str, str], limit: int | None
) -> None:
    assert groups(tmp_path, own, files) == limit


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path / "nowhere", tmp_path) is None


def test_a_pool_is_bounded_by_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cgroup_limit", lambda: 200 << 20)
    assert memory_for(None) == int(0.9 * (200 << 20))
    assert memory_for("100MiB") == 100 << 20
    with pytest.raises(ConfigError, match="kv-memory 199MiB is more than the 180 MiB"):
        memory_for("199MiB")


def test_this_machine_has_memory() -> None:
    assert 0 < machine.usable_memory() <= machine.machine_memory()
