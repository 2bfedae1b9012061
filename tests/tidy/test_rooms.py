"""Who may call whom inside the Rust crates (ARCHITECTURE.md, "Rooms")."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import PurePath

from tests.support import sources

# A room may use every room of a lower floor, and on the ground floor also its neighbours.
FLOORS = (
    ("config", "error", "metrics", "status", "trace", "wire"),
    ("listen", "streams"),
    ("cluster", "workers"),
    ("auth", "dispatch", "tokens"),
    ("validate",),
    ("service",),
    ("admin", "drain", "grpc", "http"),
    ("launch",),
    ("lib", "main"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CRATE_PATH = re.compile(r"\bcrate::(\{|\w+)")
COMMENT = re.compile(r"//.*")
# What the brain may not know: it is pure, so that a recorded log decides the same again.
IMPURE = re.compile(
    r"\bstd::(?:time::(?:Instant|SystemTime)|env|fs|net|thread|process)\b"
    r"|\b(?:tokio|tonic|prost|rand)::"
)


def rooms_used(name: str) -> set[str]:
    """Rooms of the router that the file names as `crate::ROOM`."""
    code = COMMENT.sub("", sources.text(name))
    used: set[str] = set()
    for found in CRATE_PATH.finditer(code):
        used |= set(first_names(code[found.end() :])) if found[1] == "{" else {found[1]}
    return {room for room in used if room[0].islower()}


def first_names(group: str) -> Iterator[str]:
    """The first name of each path in `a::{b, c}, d::e, f}`; `group` starts after the brace."""
    depth = 0
    is_first = True
    for part in re.findall(r"\w+|[{},]", group):
        if part == "}" and depth == 0:
            return
        depth += {"{": 1, "}": -1}.get(part, 0)
        if part == "," and depth == 0:
            is_first = True
        elif part[0].isalnum() and is_first:
            is_first = False
            yield part


def test_the_reader_of_use_groups_is_right() -> None:
    group = " error::Error, dispatch::{self, ticket::Ticket},\n wire::v1, }; use crate::http;"
    assert list(first_names(group)) == ["error", "dispatch", "wire"]


def room_of(name: str) -> str:
    """`router/src/http/mod.rs` and `router/src/status.rs` lie in `http` and `status`."""
    return PurePath(name).relative_to("router/src").parts[0].removesuffix(".rs")


def is_allowed(room: str, used: str) -> bool:
    """Down, or to oneself, or between neighbours on the ground floor."""
    return room == used or FLOOR[used] < FLOOR[room] or FLOOR[room] == FLOOR[used] == 0


def test_rooms_of_the_router_call_only_down() -> None:
    wrong = []
    for name in sources.with_suffix(".rs"):
        if not name.startswith("router/src/"):
            continue
        room = room_of(name)
        assert room in FLOOR, f"{name}: room {room} has no floor; add it to FLOORS"
        wrong += [
            f"{name}: {room} uses {used}"
            for used in sorted(rooms_used(name))
            if used not in FLOOR or not is_allowed(room, used)
        ]
    assert not wrong, "\n".join(wrong)


def test_the_brain_has_no_clock_no_socket_no_thread() -> None:
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name in sources.with_suffix(".rs")
        if name.startswith("router/core/src/")
        for number, line in enumerate(COMMENT.sub("", sources.text(name)).splitlines(), 1)
        if IMPURE.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_crates_depend_only_on_those_below() -> None:
    below = {
        "router/core": set(),
        "router/sync": set(),
        "router": {"dopd-core", "dopd-sync"},
        "router/mock": {"dopd-core", "dopd-router"},
        "router/protocol": {"dopd-core", "dopd-mock", "dopd-router", "dopd-sync"},
        "router/sim": {"dopd-core"},
        "router/python": {"dopd-core", "dopd-router", "dopd-sim"},
        "proto/codegen": set(),
    }
    for folder, allowed in below.items():
        manifest = tomllib.loads(sources.text(f"{folder}/Cargo.toml"))
        used = {name for name in manifest.get("dependencies", {}) if name.startswith("dopd-")}
        assert used <= allowed, f"{folder} depends on {used - allowed}"
