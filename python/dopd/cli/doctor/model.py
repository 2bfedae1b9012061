"""What can be known of a model on disk without loading it: config, tokenizer, template, weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from dopd.cli.doctor.facts import Model
from dopd.errors import ModelError
from dopd.weights import made_up
from dopd.weights.made_up import MadeUp

HEADER_BYTES_MAX = 100 << 20
FLOAT32_BYTES = 4
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def look(path: Path) -> Model:
    """The facts of the model at `path`, a folder or a .gguf file, or of a made-up one."""
    try:
        if made := made_up.parse(path):
            return _made_up(made)
        path.stat()
    except ModelError as error:
        return Model(str(path), kind="random", config_problem=str(error))
    except (OSError, ValueError):
        return Model(str(path), exists=False)
    filesystem = _filesystem(path)
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if path.is_file() or (files and not (path / "config.json").exists()):
        return _gguf(files[0], filesystem)
    return _folder(path, filesystem)


def _made_up(model: MadeUp) -> Model:
    """Nothing of it lies on a disk."""
    config = model.config
    layer = config.hidden_size * (
        3 * config.intermediate_size
        + 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    )
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    return Model(
        f"random:{model.name}:{model.seed}",
        kind="random weights",
        weight_bytes=0,
        memory_bytes=FLOAT32_BYTES * (config.num_layers * layer + embeddings),
        filesystem="",
    )


def _gguf(path: Path, filesystem: str) -> Model:
    from dopd.weights.gguf_header import read_header

    whole = path.stat().st_size if path.exists() else 0
    try:
        header = read_header(path)
    except (ModelError, OSError) as error:
        return Model(
            str(path),
            kind="gguf",
            weight_problems=(str(error),),
            weight_bytes=whole,
            memory_bytes=whole,
            filesystem=filesystem,
        )
    last = max((tensor.offset for tensor in header.tensors.values()), default=0)
    elements = 0
    for tensor in header.tensors.values():
        count = 1
        for length in tensor.shape:
            count *= length
        elements += count
    cut = (f"{path.name} ends before its last tensor: it is not complete",) if last >= whole else ()
    return Model(
        str(path),
        kind="gguf",
        has_template="tokenizer.chat_template" in header.fields,
        weight_problems=cut,
        weight_bytes=whole,
        memory_bytes=elements * FLOAT32_BYTES,
        filesystem=filesystem,
    )


def _folder(path: Path, filesystem: str) -> Model:
    problems, weight_bytes, elements = _weights(path)
    return Model(
        str(path),
        config_problem=_config_problem(path),
        tokenizer_problem=_tokenizer_problem(path),
        has_template=_has_template(path),
        weight_problems=tuple(problems),
        weight_bytes=weight_bytes,
        memory_bytes=elements * FLOAT32_BYTES,
        filesystem=filesystem,
    )


def _config_problem(path: Path) -> str | None:
    from dopd.weights.config import from_folder

    try:
        from_folder(path)
    except (ModelError, OSError) as error:
        return str(error)
    return None


def _tokenizer_problem(path: Path) -> str | None:
    file = path / "tokenizer.json"
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        return f"{file}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        return f"{file} is no JSON: {error}"
    return None if isinstance(found, dict) and "model" in found else f"{file} is no tokenizer"


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file():
        return True
    try:
        found = json.loads((path / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get("chat_template"))


def _weights(path: Path) -> tuple[list[str], int, int]:
    """Problems, bytes on disk and number of weights of a folder of safetensors."""
    index = path / "model.safetensors.index.json"
    names = sorted(file.name for file in path.glob("*.safetensors"))
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"{index}: {type(error).__name__}: {error}"], 0, 0
    if not names:
        return [f"{path} holds no *.safetensors"], 0, 0
    problems: list[str] = []
    whole = elements = 0
    for name in names:
        try:
            bytes_, count = _safetensors(path / name)
        except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems.append(f"{name}: {reason}")
        else:
            whole += bytes_
            elements += count
    return problems, whole, elements


def _safetensors(file: Path) -> tuple[int, int]:
    """Bytes and number of weights; raises ValueError if the file is cut off."""
    whole = file.stat().st_size
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > min(HEADER_BYTES_MAX, whole):
            raise ValueError("no safetensors file, or cut off in its header")
        header = json.loads(opened.read(length))
    if not isinstance(header, dict):
        raise ValueError("no safetensors file: its header is no table")
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    expected = 8 + length + end
    if whole < expected:
        raise ValueError(f"has {whole} of {expected} bytes: it is not complete")
    elements = sum(
        (tensor["data_offsets"][1] - tensor["data_offsets"][0])
        // DTYPE_BYTES.get(tensor["dtype"], 1)
        for tensor in header.values()
    )
    return whole, elements


def _filesystem(path: Path) -> str:
    """Type of the file system that holds `path`; "" if the system does not tell."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    real = path.resolve()
    best, found = -1, ""
    for line in mounts:
        _, folder, kind, *_ = line.split(" ")
        # What is mounted later on the same folder hides what was there.
        if real.is_relative_to(folder) and len(folder) >= best:
            best, found = len(folder), kind
    return found
