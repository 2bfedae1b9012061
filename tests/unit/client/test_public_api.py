"""The public names and their signatures, as a committed text: a change of it is a decision."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import dopd
import dopd.client
from tests.support.snapshots import assert_snapshot

CLIENTS = (dopd.Client, dopd.AsyncClient)


def described(name: str, found: Any) -> Iterator[str]:
    """Lines about one public name."""
    if not inspect.isclass(found):
        yield f"{name} = {found}"
        return
    yield f"class {name}({', '.join(base.__name__ for base in found.__bases__)})"
    is_dict = issubclass(found, dict)
    if is_dict:
        for member, kind in vars(found)["__annotations__"].items():
            yield f"    {member}: {getattr(kind, '__forward_arg__', kind)}"
    elif issubclass(found, msgspec.Struct) or found in (*CLIENTS, dopd.RequestError):
        yield f"    {name}{inspect.signature(found)}"
    for member, value in () if is_dict else sorted(vars(found).items()):
        if isinstance(value, property):
            yield f"    {member}: {value.fget.__annotations__['return']}"
        elif inspect.isfunction(value) and not member.startswith("_"):
            prefix = "async " if inspect.iscoroutinefunction(value) else ""
            yield f"    {prefix}{member}{inspect.signature(value)}"


def test_the_public_api_is_the_committed_one() -> None:
    names = [name for name in dopd.__all__ if name != "__version__"]
    lines = [line for name in names for line in described(name, getattr(dopd, name))]
    text = "\n".join(lines) + "\n"
    assert "_pb2" not in text
    assert_snapshot("public_api", text)


def test_every_public_thing_is_documented() -> None:
    for name in dopd.__all__:
        found = getattr(dopd, name)
        if inspect.isclass(found):
            assert found.__doc__, name
            for member, value in vars(found).items():
                if inspect.isfunction(value) and not member.startswith("_"):
                    assert value.__doc__, f"{name}.{member}"


def test_dopd_offers_what_its_client_does() -> None:
    assert set(dopd.__all__) - {"DopdError", "__version__"} == set(dopd.client.__all__)
    assert set(dopd.__all__) <= set(dir(dopd))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Cleint"):
        _ = dopd.Cleint


def test_both_clients_have_the_same_methods() -> None:
    def faces(kind: type) -> dict[str, list[str]]:
        return {
            name.replace("__a", "__"): list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if inspect.isfunction(value)
        }

    assert faces(dopd.Client) == faces(dopd.AsyncClient)
    hidden = {name for name in faces(dopd.AsyncAnswerStream) if name.startswith("_")}
    public = faces(dopd.AsyncAnswerStream).keys() - hidden
    assert public == {name for name in faces(dopd.AnswerStream) if not name.startswith("_")}


def test_importing_dopd_loads_neither_grpc_nor_msgspec() -> None:
    code = "import sys, dopd; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"grpc", "msgspec", "google", "asyncio"} & set(done.stdout.split())


def test_the_client_needs_only_what_the_wheel_depends_on() -> None:
    foreign = ("google.rpc", "grpc_status", "grpc_health", "grpc_tools", "torch", "numpy", "rich")
    code = f"import sys; sys.modules.update(dict.fromkeys({foreign})); import dopd.client"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
