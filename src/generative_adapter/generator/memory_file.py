"""Files of memories: states in one of the forms of `memory_form`, a header and a checksum.

Versions: 1, states as they are, float64; 2, sums in one of the forms; 3, a row for every token in one of the forms.
Leaves out: what a memory is and can do (`memory.py`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from generative_adapter.config import DEFAULT_MEMORY_DTYPE, MEMORY_DTYPES, require_memory_dtype
from generative_adapter.errors import CheckpointError
from generative_adapter.generator.memory_form import (
    mirrored,
    pack_rows,
    pack_state,
    packed_layout,
    rows_layout,
    unpack_rows,
    unpack_state,
)
from generative_adapter.generator.storage import write_safetensors

MEMORY_FORMAT = "generative-adapter-memory"
_OF_SUMS, _OF_TOKENS = "2", "3"  # versions
_KNOWN = ("1", _OF_SUMS, _OF_TOKENS)
_DEFAULT_ROWS_DTYPE = "bfloat16"  # forgetting is exact in every form, so nothing speaks for a longer one


def default_dtype(keeps_tokens: bool) -> str:
    """The form that memories of a kind are stored in unless another is asked for."""
    return _DEFAULT_ROWS_DTYPE if keeps_tokens else DEFAULT_MEMORY_DTYPE


def write_memory(
    path: Path, states: Mapping[str, Tensor], dtype: str, header: Mapping[str, str], *, keeps_tokens: bool
) -> None:
    """Writes states and header, first to a temporary name and then renamed.

    Args:
        path: of the file.
        states: by name; sums `[rows, columns]`, or a row for every token `[tokens, width]`.
        dtype: the form, one of `config.MEMORY_DTYPES`.
        header: what else the file is to say.
        keeps_tokens: which kind of states they are.

    Raises:
        ConfigError: when `dtype` is none of these.
        DataError: when a state holds numbers that the form can't hold.
    """
    require_memory_dtype(dtype)
    pack = pack_rows if keeps_tokens else pack_state
    packed = {name: pack(state, dtype) for name, state in states.items()}
    tensors = {f"{name}.{part}": tensor for name, parts in packed.items() for part, tensor in parts.items()}
    kind = {"version": _OF_TOKENS, "keeps_tokens": "true"} if keeps_tokens else {"version": _OF_SUMS}
    metadata = {
        "format": MEMORY_FORMAT,
        **kind,
        "dtype": dtype,
        "shapes": json.dumps({name: list(state.shape) for name, state in states.items()}),
        "checksum": _checksum(tensors),
        **header,
    }
    write_safetensors(path, tensors, metadata)


@contextmanager
def open_memory(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and its header, of a known version; what goes wrong inside is told as a CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no memory file at {path}; make one with `genadapter contextualize`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != MEMORY_FORMAT:
                raise CheckpointError(f"{path} is not a memory: its format is {metadata.get('format')!r}")
            if metadata.get("version") not in _KNOWN:
                raise CheckpointError(
                    f"{path} is a memory of version {metadata.get('version')}, this release reads {_KNOWN[0]} to "
                    f"{_KNOWN[-1]}; install a newer release, or read the context again"
                )
            yield file, metadata
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as a memory: {error}") from error


def stored_dtype(path: str | Path) -> str:
    """The form in which a memory file holds its states, one of `config.MEMORY_DTYPES`; reads only its header.

    Raises:
        CheckpointError: when the file is missing, damaged or of another kind.
    """
    with open_memory(Path(path)) as (_, metadata):
        return _dtype_of(metadata)


def header_keeps_tokens(metadata: Mapping[str, str]) -> bool:
    """Whether a header is that of a row for every token; a ValueError when it contradicts itself."""
    said, version = metadata.get("keeps_tokens", "false"), metadata["version"]
    if said != ("true" if version == _OF_TOKENS else "false"):
        raise ValueError(f"its header says version {version} and keeps_tokens {said}, which don't go together")
    return version == _OF_TOKENS


def read_states(file: Any, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The states, sums in float64 and rows in float32.

    A ValueError when tensors are missing, of other shapes or not those that were written.
    """
    dtype, of_tokens = _dtype_of(metadata), header_keeps_tokens(metadata)
    tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata["version"] == "1":
        return {name: mirrored(tensor.double()) for name, tensor in tensors.items()}
    shapes = {name: (int(rows), int(columns)) for name, (rows, columns) in json.loads(metadata["shapes"]).items()}
    layout_of = rows_layout if of_tokens else packed_layout
    layouts = {name: layout_of(shape, dtype) for name, shape in shapes.items()}
    expected = {f"{name}.{part}": kind for name, layout in layouts.items() for part, kind in layout.items()}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
        raise ValueError(f"its tensors don't match its header: {', '.join(wrong[:3])}")
    if metadata["checksum"] != _checksum(tensors):
        raise ValueError("its checksum is another, so the file is damaged; restore it or read the context again")
    packed = {name: {part: tensors[f"{name}.{part}"] for part in layout} for name, layout in layouts.items()}
    if of_tokens:
        return {name: unpack_rows(parts) for name, parts in packed.items()}
    return {name: unpack_state(parts, shapes[name], dtype) for name, parts in packed.items()}


def _dtype_of(metadata: Mapping[str, str]) -> str:
    dtype = "float64" if metadata["version"] == "1" else metadata["dtype"]
    if dtype not in MEMORY_DTYPES:
        raise ValueError(f"its states are stored as {dtype!r}, expected one of {', '.join(MEMORY_DTYPES)}")
    return dtype


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over the bytes of all tensors in the order of their names, in hex."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
