"""ContextMemory: what a generator keeps of the contexts read so far: sums (eq. 3), or a row for every token.

Memories add: S(A) + S(B) is the memory of two separately read documents, and subtracting S(B) forgets B again. Leaves
out: reading text (`contextualizer`), making adapters (`generator.py`), files (`memory_file`) and the forms of stored
states (`memory_form`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from generative_adapter.errors import DataError, FingerprintMismatchError
from generative_adapter.generator.memory_file import (
    default_dtype,
    header_keeps_tokens,
    open_memory,
    read_states,
    write_memory,
)
from generative_adapter.generator.memory_form import mirrored, without_negative_keys


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
        kept_rows: rows it has in a memory that keeps tokens; None: one for every token.
    """

    name: str
    sha256: str
    num_tokens: int
    num_chunks: int
    read_after: int = 0
    kept_rows: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows of a memory that keeps tokens."""
        return self.num_tokens if self.kept_rows is None else self.kept_rows

    @property
    def streamed(self) -> bool:
        """Whether it was read as the continuation of others."""
        return self.read_after > 0


def text_digest(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8, which tells documents apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, eq=False)
class ContextMemory:
    """The memory of a generator; a value, so every operation gives a new one.

    Attributes:
        states: target name -> S_t `[d_r, d_r]`, or for `ridge` with the symmetric sum of k_i k_i^T `[d_r, d_r]` below
            it; float64, so that what is added and taken away again leaves nothing. With `keeps_tokens`: name -> rows
            `[rows, width]`, float32, in the order of `documents`, `num_rows` of each.
        generator_fingerprint: of the generator that wrote it; no other can read it.
        base_fingerprint: of the base model whose hidden states it sums up.
        base_name: the base model's name, for people.
        documents: the texts it holds, in the order they were taken in.
        keeps_tokens: whether states hold a row for every token, rather than sums over tokens.
    """

    states: Mapping[str, Tensor]
    generator_fingerprint: str
    base_fingerprint: str
    base_name: str = ""
    documents: tuple[DocumentEntry, ...] = ()
    keeps_tokens: bool = False

    @property
    def num_tokens(self) -> int:
        """Context tokens taken in."""
        return sum(document.num_tokens for document in self.documents)

    @property
    def num_rows(self) -> int:
        """Rows that each state has where tokens are kept."""
        return sum(document.num_rows for document in self.documents)

    @property
    def num_chunks(self) -> int:
        """Chunks taken in."""
        return sum(document.num_chunks for document in self.documents)

    @property
    def num_bytes(self) -> int:
        """Bytes of all states: of sums the same however much was read, of kept tokens so many for each row."""
        return sum(state.numel() * state.element_size() for state in self.states.values())

    @property
    def default_dtype(self) -> str:
        """The form it is stored in unless another is asked for."""
        return default_dtype(self.keeps_tokens)

    def accumulate(self, increments: Mapping[str, Tensor], documents: tuple[DocumentEntry, ...]) -> ContextMemory:
        """The memory after one more chunk: S_t = S_{t-1} + A2 H^T H B1, eq. (3), arXiv:2411.05877; or its rows below.

        Args:
            increments: target name -> what `ContextGenerator.taken_in` gives for it: of the state's shape, or where
                tokens are kept the rows to put below the state's.
            documents: what the memory holds afterwards.
        """
        if self.keeps_tokens:
            states = {name: torch.cat([state, increments[name].to(state)]) for name, state in self.states.items()}
        else:
            states = {name: mirrored(state + increments[name].to(state)) for name, state in self.states.items()}
        return self._replace(states, documents)

    def __add__(self, other: ContextMemory) -> ContextMemory:
        """The memory of both, each read on its own.

        Raises:
            FingerprintMismatchError: when another generator or base model wrote `other`, or it is of the other kind.
        """
        self.check_kin(other)
        return self.accumulate(other.states, self.documents + other.documents)

    def __sub__(self, other: ContextMemory) -> ContextMemory:
        """The memory without the documents of `other`, as if they had never been read.

        Where tokens are kept, the rows of these documents are cut out, which is exact in every stored form. Sums leave
        floating-point error; from those that were stored in a rounded form, the rounding error of all they held stays
        behind, and negative eigenvalues that it leaves in a sum of k_i k_i^T are set to zero.

        Raises:
            FingerprintMismatchError: when another generator or base model wrote `other`, or it is of the other kind.
            DataError: when a document of `other` isn't held, or was streamed (here or in `other`), or another was read
                as its continuation, so that its part can't be told from the rest; or when rows and documents of this
                memory don't fit together.
        """
        self.check_kin(other)
        left = list(range(len(self.documents)))
        for document in other.documents:
            held = [self.documents[index] for index in left]
            same = [at for at, entry in enumerate(held) if entry.sha256 == document.sha256]
            if not same:
                names = ", ".join(repr(entry.name) for entry in held) or "nothing"
                raise DataError(
                    f"the memory does not hold {document.name!r}, so it can't be forgotten; it holds {names}"
                )
            free = [at for at in same if not _in_a_stream(held, at)]
            if document.streamed or not free:
                raise DataError(
                    f"{document.name!r} can't be forgotten: it was read as part of a stream, so later text was read "
                    "under its influence; read documents separately and add their memories instead"
                )
            del left[free[-1]]
        if self.keeps_tokens:
            states = self._rows_of(left)
        else:
            states = {
                name: without_negative_keys(mirrored(state - other.states[name].to(state)))
                for name, state in self.states.items()
            }
            if not left:
                states = {name: torch.zeros_like(state) for name, state in states.items()}
        return self._replace(states, tuple(self.documents[index] for index in left))

    def save(self, path: str | Path, dtype: str | None = None) -> None:
        """Writes the memory as safetensors, first to a temporary name and then renamed.

        Args:
            path: of the file.
            dtype: for sums `float64` (the default) keeps every bit, so that documents can be forgotten without a trace
                later; `bfloat16` and `int8` take about a quarter and an eighth of its bytes and round
                (docs/architecture.md has the errors). For kept tokens `float64` writes the rows as they are, in
                float32; `bfloat16` (the default) and `int8`, with a scale for 32 numbers, take a half and 0.28 of it
                and round. Documents can be forgotten exactly from each.

        Raises:
            ConfigError: when `dtype` is none of these.
            DataError: when a state holds numbers that the form can't hold, or not as many rows as its documents have.
        """
        if self.keeps_tokens:
            self._check_rows()
        header = {
            "generator_fingerprint": self.generator_fingerprint,
            "base_fingerprint": self.base_fingerprint,
            "base_name": self.base_name,
            "documents": json.dumps([asdict(document) for document in self.documents]),
        }
        chosen = self.default_dtype if dtype is None else dtype
        write_memory(Path(path), self.states, chosen, header, keeps_tokens=self.keeps_tokens)

    @classmethod
    def load(cls, path: str | Path, expected_generator: str | None = None) -> ContextMemory:
        """The memory in a file; sums are float64 and kept tokens float32, whatever form they are stored in.

        Args:
            path: what `save` wrote.
            expected_generator: fingerprint of the generator that is to read it; None: any.

        Raises:
            CheckpointError: when the file is missing, damaged or of another kind.
            FingerprintMismatchError: when another generator wrote it.
        """
        with open_memory(Path(path)) as (file, metadata):
            memory = cls(
                states=read_states(file, metadata),
                generator_fingerprint=metadata["generator_fingerprint"],
                base_fingerprint=metadata["base_fingerprint"],
                base_name=metadata["base_name"],
                documents=tuple(DocumentEntry(**entry) for entry in json.loads(metadata["documents"])),
                keeps_tokens=header_keeps_tokens(metadata),
            )
            if memory.keeps_tokens:
                memory._check_rows()
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
        if other.keeps_tokens != self.keeps_tokens:
            raise FingerprintMismatchError(
                f"one of the memories keeps a row for every token and one holds sums, though both name generator "
                f"{self.generator_fingerprint}, which writes one kind; read both contexts again with it"
            )
        if other.base_fingerprint != self.base_fingerprint:
            raise FingerprintMismatchError(
                f"the memories belong to two base models ({self.base_name} {self.base_fingerprint}, {other.base_name} "
                f"{other.base_fingerprint}); read both contexts with one"
            )

    def _replace(self, states: Mapping[str, Tensor], documents: tuple[DocumentEntry, ...]) -> ContextMemory:
        return replace(self, states=states, documents=documents)

    def _rows_of(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of the documents of these indices, ascending."""
        self._check_rows()
        sizes = [document.num_rows for document in self.documents]
        parts = {name: state.split(sizes) for name, state in self.states.items()}
        return {
            name: torch.cat([state[:0], *(parts[name][index] for index in indices)])
            for name, state in self.states.items()
        }

    def _check_rows(self) -> None:
        """Raises DataError unless every state has as many rows as the documents."""
        for name, state in self.states.items():
            if len(state) != self.num_rows:
                raise DataError(
                    f"its state {name!r} has {len(state)} rows, but its documents should have {self.num_rows}; read "
                    "the context again"
                )


def _in_a_stream(documents: list[DocumentEntry], index: int) -> bool:
    """Whether a document was read after others, or others after it."""
    later = enumerate(documents[index + 1 :], start=index + 1)
    return documents[index].streamed or any(at - entry.read_after <= index for at, entry in later)
