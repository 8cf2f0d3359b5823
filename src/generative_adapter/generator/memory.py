"""ContextMemory: what a generator keeps of the contexts read so far, one state a target (eq. 3); and its file.

Memories add: S(A) + S(B) is the memory of two separately read documents, and subtracting S(B) forgets B again. Leaves
out: reading text (`contextualizer`), making adapters (`generator.py`) and the forms of stored states (`memory_form`).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from generative_adapter.config import DEFAULT_MEMORY_DTYPE, MEMORY_DTYPES, require_memory_dtype
from generative_adapter.errors import CheckpointError, DataError, FingerprintMismatchError
from generative_adapter.generator.memory_form import (
    mirrored,
    pack_state,
    packed_layout,
    unpack_state,
    without_negative_keys,
)
from generative_adapter.generator.storage import write_safetensors

MEMORY_FORMAT = "generative-adapter-memory"
_VERSION = 2  # version 1: the states as they are, float64


@dataclass(frozen=True)
class DocumentEntry:
    """One text a memory has taken in.

    Attributes:
        name: file name or a name of the caller's.
        sha256: hex digest of the text in UTF-8.
        num_tokens: tokens of the text.
        num_chunks: chunks it was read in.
        read_after: how many of the documents just before it in its memory it was read as the continuation of; those,
            and itself, can't be forgotten on their own.
    """

    name: str
    sha256: str
    num_tokens: int
    num_chunks: int
    read_after: int = 0

    @property
    def streamed(self) -> bool:
        """Whether it was read as the continuation of others."""
        return self.read_after > 0


def text_digest(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8, which tells documents apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, eq=False)
class ContextMemory:
    """The additive memory of a generator; a value, so every operation gives a new one.

    Attributes:
        states: target name -> S_t `[d_r, d_r]`, or for `ridge` with the symmetric sum of k_i k_i^T `[d_r, d_r]` below
            it; float64, so that what is added and taken away again leaves nothing.
        generator_fingerprint: of the generator that wrote it; no other can read it.
        base_fingerprint: of the base model whose hidden states it sums up.
        base_name: the base model's name, for people.
        documents: the texts it holds, in the order they were taken in.
    """

    states: Mapping[str, Tensor]
    generator_fingerprint: str
    base_fingerprint: str
    base_name: str = ""
    documents: tuple[DocumentEntry, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Context tokens taken in."""
        return sum(document.num_tokens for document in self.documents)

    @property
    def num_chunks(self) -> int:
        """Chunks taken in."""
        return sum(document.num_chunks for document in self.documents)

    @property
    def num_bytes(self) -> int:
        """Bytes of all states; does not depend on how much was read."""
        return sum(state.numel() * state.element_size() for state in self.states.values())

    def accumulate(self, increments: Mapping[str, Tensor], documents: tuple[DocumentEntry, ...]) -> ContextMemory:
        """The memory after one more chunk: S_t = S_{t-1} + A2 H^T H B1, eq. (3), arXiv:2411.05877.

        Args:
            increments: target name -> what `AdapterGenerator.write` gives for it, of the state's shape.
            documents: what the memory holds afterwards.
        """
        states = {name: mirrored(state + increments[name].to(state)) for name, state in self.states.items()}
        return self._replace(states, documents)

    def __add__(self, other: ContextMemory) -> ContextMemory:
        """The memory of both, each read on its own.

        Raises:
            FingerprintMismatchError: when another generator or base model wrote `other`.
        """
        self.check_kin(other)
        return self.accumulate(other.states, self.documents + other.documents)

    def __sub__(self, other: ContextMemory) -> ContextMemory:
        """The memory without the documents of `other`, as if they had never been read (to floating-point error).

        From a memory that was stored in a rounded form, the rounding error of all it held stays behind; negative
        eigenvalues that it leaves in a sum of k_i k_i^T are set to zero.

        Raises:
            FingerprintMismatchError: when another generator or base model wrote `other`.
            DataError: when a document of `other` isn't held, or was streamed (here or in `other`), or another was read
                as its continuation, so that its part can't be told from the rest.
        """
        self.check_kin(other)
        left = list(self.documents)
        for document in other.documents:
            same = [i for i, held in enumerate(left) if held.sha256 == document.sha256]
            if not same:
                held = ", ".join(repr(entry.name) for entry in left) or "nothing"
                raise DataError(
                    f"the memory does not hold {document.name!r}, so it can't be forgotten; it holds {held}"
                )
            free = [i for i in same if not _in_a_stream(left, i)]
            if document.streamed or not free:
                raise DataError(
                    f"{document.name!r} can't be forgotten: it was read as part of a stream, so later text was read "
                    "under its influence; read documents separately and add their memories instead"
                )
            del left[free[-1]]
        states = {
            name: without_negative_keys(mirrored(state - other.states[name].to(state)))
            for name, state in self.states.items()
        }
        if not left:
            states = {name: torch.zeros_like(state) for name, state in states.items()}
        return self._replace(states, tuple(left))

    def save(self, path: str | Path, dtype: str = DEFAULT_MEMORY_DTYPE) -> None:
        """Writes the memory as safetensors, first to a temporary name and then renamed.

        Args:
            path: of the file.
            dtype: `float64` keeps every bit, so that documents can be forgotten without a trace later; `bfloat16` and
                `int8` take about a quarter and an eighth of its bytes and round (docs/architecture.md has the errors).

        Raises:
            ConfigError: when `dtype` is none of these.
            DataError: when a state holds numbers that the form can't hold.
        """
        require_memory_dtype(dtype)
        tensors = {
            f"{name}.{part}": tensor
            for name, state in self.states.items()
            for part, tensor in pack_state(state, dtype).items()
        }
        metadata = {
            "format": MEMORY_FORMAT,
            "version": str(_VERSION),
            "dtype": dtype,
            "shapes": json.dumps({name: list(state.shape) for name, state in self.states.items()}),
            "checksum": _checksum(tensors),
            "generator_fingerprint": self.generator_fingerprint,
            "base_fingerprint": self.base_fingerprint,
            "base_name": self.base_name,
            "documents": json.dumps([asdict(document) for document in self.documents]),
        }
        write_safetensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, expected_generator: str | None = None) -> ContextMemory:
        """The memory in a file; its states are float64, whatever form they are stored in.

        Args:
            path: what `save` wrote.
            expected_generator: fingerprint of the generator that is to read it; None: any.

        Raises:
            CheckpointError: when the file is missing, damaged or of another kind.
            FingerprintMismatchError: when another generator wrote it.
        """
        with _open_memory(Path(path)) as (file, metadata):
            memory = cls(
                states=_read_states(file, metadata),
                generator_fingerprint=metadata["generator_fingerprint"],
                base_fingerprint=metadata["base_fingerprint"],
                base_name=metadata["base_name"],
                documents=tuple(DocumentEntry(**entry) for entry in json.loads(metadata["documents"])),
            )
        if expected_generator is not None:
            memory.check_generator(expected_generator, str(path))
        return memory

    def check_generator(self, fingerprint: str, what: str = "the memory") -> None:
        """Raises FingerprintMismatchError unless the generator of that fingerprint wrote this memory."""
        if fingerprint != self.generator_fingerprint:
            raise FingerprintMismatchError(
                f"{what} was written by generator {self.generator_fingerprint}, not by {fingerprint}; load that "
                "generator, or read the context again with this one"
            )

    def check_kin(self, other: ContextMemory) -> None:
        """Raises FingerprintMismatchError unless the same generator wrote `other` from the same base model."""
        other.check_generator(self.generator_fingerprint, "the other memory")
        if other.base_fingerprint != self.base_fingerprint:
            raise FingerprintMismatchError(
                f"the memories belong to two base models ({self.base_name} {self.base_fingerprint}, {other.base_name} "
                f"{other.base_fingerprint}); read both contexts with one"
            )

    def _replace(self, states: Mapping[str, Tensor], documents: tuple[DocumentEntry, ...]) -> ContextMemory:
        return ContextMemory(states, self.generator_fingerprint, self.base_fingerprint, self.base_name, documents)


def _in_a_stream(documents: list[DocumentEntry], index: int) -> bool:
    """Whether a document was read after others, or others after it."""
    later = enumerate(documents[index + 1 :], start=index + 1)
    return documents[index].streamed or any(at - entry.read_after <= index for at, entry in later)


def stored_dtype(path: str | Path) -> str:
    """The form in which a memory file holds its states, one of `config.MEMORY_DTYPES`; reads only its header.

    Raises:
        CheckpointError: when the file is missing, damaged or of another kind.
    """
    with _open_memory(Path(path)) as (_, metadata):
        return _dtype_of(metadata)


@contextmanager
def _open_memory(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and its header, of a known version; what goes wrong inside is told as a CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no memory file at {path}; make one with `genadapter contextualize`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != MEMORY_FORMAT:
                raise CheckpointError(f"{path} is not a memory: its format is {metadata.get('format')!r}")
            if metadata.get("version") not in ("1", str(_VERSION)):
                raise CheckpointError(
                    f"{path} is a memory of version {metadata.get('version')}, this release reads 1 to {_VERSION}; "
                    "install a newer release, or read the context again"
                )
            yield file, metadata
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as a memory: {error}") from error


def _dtype_of(metadata: Mapping[str, str]) -> str:
    dtype = "float64" if metadata["version"] == "1" else metadata["dtype"]
    if dtype not in MEMORY_DTYPES:
        raise ValueError(f"its states are stored as {dtype!r}, expected one of {', '.join(MEMORY_DTYPES)}")
    return dtype


def _read_states(file: Any, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The states, float64; a ValueError when tensors are missing, of other shapes or not those that were written."""
    dtype = _dtype_of(metadata)
    tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata["version"] == "1":
        return {name: mirrored(tensor.double()) for name, tensor in tensors.items()}
    shapes = {name: (int(rows), int(columns)) for name, (rows, columns) in json.loads(metadata["shapes"]).items()}
    layouts = {name: packed_layout(shape, dtype) for name, shape in shapes.items()}
    expected = {f"{name}.{part}": kind for name, layout in layouts.items() for part, kind in layout.items()}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
        raise ValueError(f"its tensors don't match its header: {', '.join(wrong[:3])}")
    if metadata["checksum"] != _checksum(tensors):
        raise ValueError("its checksum is another, so the file is damaged; restore it or read the context again")
    return {
        name: unpack_state({part: tensors[f"{name}.{part}"] for part in layout}, shapes[name], dtype)
        for name, layout in layouts.items()
    }


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over the bytes of all tensors in the order of their names, in hex."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
