"""Columns of numbers between Python and the extension: 8 bytes a value."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def floats(values: Iterable[float]) -> array[float]:
    """Any sequence or buffer of numbers as 64-bit floats."""
    return array("d", _items(values))


def integers(name: str, values: Iterable[int]) -> array[int]:
    """Any sequence or buffer of whole numbers as 64-bit integers. Raises ValueError."""
    try:
        return array("q", _items(values))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be whole numbers of 64 bits: {error}") from error


def _items(values: Iterable[Any]) -> Iterable[Any]:
    """Lists are faster to read than arrays of NumPy, item by item."""
    listed = getattr(values, "tolist", None)
    return values if listed is None else listed()


def numbers(column: bytes) -> NDArray[np.int64]:
    """A column of the extension. Raises ImportError without NumPy."""
    import numpy as np

    return np.frombuffer(column, dtype="<i8")
