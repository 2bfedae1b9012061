"""Columns of numbers between Python and the extension: 8 bytes a value."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Number = TypeVar("Number", int, float)


def floats(name: str, values: Iterable[float]) -> array[float]:
    """Any sequence or buffer of numbers as 64-bit floats. Raises ValueError."""
    try:
        return _filled(name, array("d", _items(values)))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from error


def integers(name: str, values: Iterable[int]) -> array[int]:
    """Any sequence or buffer of whole numbers as 64-bit integers. Raises ValueError."""
    try:
        return _filled(name, array("q", _items(values)))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be whole numbers of 64 bits: {error}") from error


def _filled(name: str, column: array[Number]) -> array[Number]:
    """An empty array has no address to hand over, and a trace without requests no figures."""
    if not column:
        raise ValueError(f"{name} is empty, must have a value for each request, at least one")
    return column


def _items(values: Iterable[Any]) -> Iterable[Any]:
    """Lists are faster to read than arrays of NumPy, item by item."""
    listed = getattr(values, "tolist", None)
    return values if listed is None else listed()


def numbers(column: bytes) -> NDArray[np.int64]:
    """A column of the extension. Raises ImportError without NumPy."""
    import numpy as np

    return np.frombuffer(column, dtype="<i8")
