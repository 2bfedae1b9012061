"""Model folders with safetensors, one file or many under an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dopd.errors import ModelError
from dopd.weights import config as model_config
from dopd.weights.hash import weight_files

INDEX = "model.safetensors.index.json"
FLOAT_DTYPES = frozenset({"F32", "F16", "BF16", "F64"})


class SafetensorsCheckpoint:
    """A folder with config.json and *.safetensors.

    Files are mapped, a tensor is read when asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.config = model_config.from_folder(folder)
        self._file_of: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in _files(folder):
            self._add(path)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor in the folder."""
        return self._shapes

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the dtype it was saved in."""
        try:
            tensor = self._file_of[name].get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"cannot read tensor {name}: {error}") from error
        assert isinstance(tensor, Tensor)
        return tensor

    def _add(self, path: Path) -> None:
        """Read one file's header.

        The library checks that offsets fit the file, so a cut file fails here.
        """
        try:
            file = safe_open(path, framework="pt", device="cpu")
            for name in file.keys():  # type: ignore[no-untyped-call]
                view = file.get_slice(name)  # type: ignore[no-untyped-call]
                if view.get_dtype() not in FLOAT_DTYPES:
                    raise ModelError(
                        f"tensor {name} in {path.name} has dtype {view.get_dtype()}; "
                        f"supported: {', '.join(sorted(FLOAT_DTYPES))}"
                    )
                if name in self._shapes:
                    raise ModelError(f"tensor {name} is in two files, one of them {path.name}")
                self._file_of[name] = file
                self._shapes[name] = tuple(view.get_shape())
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error}") from error
        except SafetensorError as error:
            raise ModelError(
                f"{path} of {path.stat().st_size} bytes is broken or cut off: {error}; "
                "fetch it again"
            ) from error


def _files(folder: Path) -> list[Path]:
    """The files to open: those that the index names, which must exist, or else all there are."""
    if not (folder / INDEX).exists():
        return weight_files(folder)
    weight_map = model_config.read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX} has no weight_map")
    paths = []
    for name in sorted({str(file) for file in weight_map.values()}):
        path = folder / name
        if Path(name).name != name:
            raise ModelError(f"{folder / INDEX} names {name}, which is not in the folder itself")
        if not path.is_file():
            raise ModelError(f"weight file {path} is missing; {INDEX} names it")
        paths.append(path)
    return paths
