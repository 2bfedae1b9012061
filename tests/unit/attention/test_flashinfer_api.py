"""FlashInfer's calls: what dopd gives, the double takes, and the wheel has.

Without the wheel its source will do: a folder with `flashinfer/` in it, unpacked from the wheel and
named by DOPD_TEST_FLASHINFER_SOURCE.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
from pathlib import Path

import pytest

from tests.support.gpu import stub_flashinfer

TABLE = Path(stub_flashinfer.__file__).with_name("flashinfer_api.txt")
Parameters = tuple[list[str], list[str]]


def table() -> dict[str, Parameters]:
    """What is relied upon: names of parameters by place, and those given by name."""
    found = {}
    for line in TABLE.read_text().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("(")
            parameters = [part.strip() for part in rest.removesuffix(")").split(",")]
            split = parameters.index("*") if "*" in parameters else len(parameters)
            found[name] = (parameters[:split], parameters[split + 1 :])
    return found


@pytest.mark.parametrize("name", table())
def test_double_takes_what_is_written_down_and_nothing_else(name: str) -> None:
    function: object = stub_flashinfer
    for part in name.split("."):
        function = getattr(function, part)
    assert callable(function)
    kinds = inspect.Parameter
    places, names = [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is kinds.POSITIONAL_OR_KEYWORD:
            places.append(parameter.name)
        else:
            assert parameter.kind is kinds.KEYWORD_ONLY
            names.append(parameter.name)
    assert (places, sorted(names)) == (table()[name][0], sorted(table()[name][1]))


def package() -> Path:
    """The folder of the wheel, installed or unpacked; skips if there is none."""
    unpacked = os.environ.get("DOPD_TEST_FLASHINFER_SOURCE")
    if unpacked:
        return Path(unpacked) / "flashinfer"
    spec = importlib.util.find_spec("flashinfer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no flashinfer-python, nor its source in DOPD_TEST_FLASHINFER_SOURCE")
    return Path(spec.submodule_search_locations[0])


def exported(root: Path, name: str) -> Path:
    """The file of the module from which `flashinfer/__init__.py` takes this name."""
    for node in ast.walk(ast.parse((root / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and any(one.name == name for one in node.names):
            base = root.joinpath(*(node.module or "").split("."))
            file = base.with_suffix(".py")
            return file if file.exists() else base / "__init__.py"
    raise AssertionError(f"flashinfer does not export {name}")


def functions(file: Path) -> dict[str, ast.FunctionDef]:
    """Functions and methods of a file; of overloads the last, which is the function itself."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{node.name}.{method.name}"] = method
    return found


def parameters(function: ast.FunctionDef) -> Parameters:
    """By place, and all that may be given by name."""
    places = [argument.arg for argument in function.args.posonlyargs + function.args.args]
    return places, places + [argument.arg for argument in function.args.kwonlyargs]


@pytest.mark.parametrize("name", table())
def test_wheel_has_what_is_relied_upon(name: str) -> None:
    root = package()
    found = functions(exported(root, name.split(".")[0]))
    function = found[name]
    places, names = parameters(function)
    if function.args.kwarg is not None:
        # `plan` of the decode wrapper hands them on.
        names += parameters(found[f"{name.split('.')[0]}._plan_impl"])[1]
    relied_places, relied_names = table()[name]
    assert places[: len(relied_places)] == relied_places
    assert set(relied_names) <= set(names)
