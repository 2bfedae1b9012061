"""One error table in three places: proto, Rust, Python."""

from __future__ import annotations

import re

from dopd._gen.dopd.v1 import types_pb2
from dopd.errors import BY_CODE, ERROR_KINDS, ErrorKind
from tests.support import sources

ROW = re.compile(r'^    (\w+) "(\w+)" "(\w+)"\s+(\w+) (\d+) (\w+) (\w+);', re.MULTILINE)


def rust_table() -> list[ErrorKind]:
    """The rows of router/src/error/table.rs."""
    rows = ROW.findall(sources.text("router/src/error/table.rs"))
    return [
        ErrorKind(code, kind, upper_snake(grpc), int(http), origin.lower(), retry == "Later")
        for _, code, kind, grpc, http, origin, retry in rows
    ]


def upper_snake(camel: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", camel).upper()


def test_rust_and_python_agree_row_by_row() -> None:
    assert rust_table() == list(ERROR_KINDS)


def test_the_proto_names_the_same_codes_in_the_same_order() -> None:
    values = types_pb2.ErrorReason.items()
    names = [name for name, number in sorted(values, key=lambda value: value[1])]
    codes = [name.removeprefix("ERROR_REASON_").lower() for name in names]
    assert codes == ["unspecified", *BY_CODE]


def test_codes_are_unique_and_statuses_errors() -> None:
    assert len(BY_CODE) == len(ERROR_KINDS)
    assert all(400 <= kind.http < 600 for kind in ERROR_KINDS)
