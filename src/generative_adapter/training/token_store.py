"""Token stores: records tokenised once, kept as memory-mapped shards on disk.

A store is a folder of `shard-00000.safetensors`, ... and `store.json`, which names the complete shards, what the store
was made from, and how many rows of the source are in it. A kill at any moment leaves the shards before it, and filling
goes on after them. A record is a list of parts, each a run of token ids: a plain text has one part, a context with
questions one for the context and two for each question (prompt, response). Texts that are wanted as texts are kept as
bytes of UTF-8, which are token ids below 256.

Leaves out: tokenising, and which records go in (`token_cache`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from generative_adapter.errors import DataError
from generative_adapter.generator.storage import write_atomically, write_json

FORMAT = "generative-adapter-token-store"
SHARD_TOKENS = 4_000_000
_INDEX = "store.json"
_NUMBERS = ((np.uint8, 1 << 8), (np.uint16, 1 << 16))  # the smallest that holds the largest id


class EncodedRecord(NamedTuple):
    """A tokenised record.

    Attributes:
        row: rows of the source up to and with this record's last one; filling can go on after it.
        digest: 32 bits of a hash of its context, by which records are held out.
        parts: token ids.
    """

    row: int
    digest: int
    parts: Sequence[Sequence[int]]


@dataclass
class _Shard:
    """What goes into the next shard."""

    ids: list[int] = field(default_factory=list)
    part_ends: list[int] = field(default_factory=list)
    record_ends: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)

    def add(self, record: EncodedRecord) -> None:
        for part in record.parts:
            self.ids.extend(part)
            self.part_ends.append(len(self.ids))
        self.record_ends.append(len(self.part_ends))
        self.digests.append(record.digest)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        largest = max(self.ids, default=0)
        number = next((kind for kind, size in _NUMBERS if largest < size), np.int32)
        return {
            "ids": np.array(self.ids, dtype=number),
            "part_ends": np.array(self.part_ends, dtype=np.int64),
            "record_ends": np.array(self.record_ends, dtype=np.int64),
            "digests": np.array(self.digests, dtype=np.int64),
        }


def fill_store(
    folder: Path,
    identity: Mapping[str, Any],
    records: Callable[[int], Iterator[EncodedRecord]],
    *,
    max_records: int | None = None,
    max_tokens: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fills a store, or goes on with one that was left half full; a complete one is left as it is.

    Args:
        folder: of the store.
        identity: what it is made from, as JSON values.
        records: gives the records after so many rows of the source.
        max_records: at most so many records.
        max_tokens: no further record once there are so many tokens.
        shard_tokens: tokens after which a shard is written; a kill loses at most so many.
        progress: is told the records and tokens so far, after every record.

    Raises:
        DataError: the folder holds a store made from something else, or a damaged one; whatever `records` raises.
    """
    index = _read_index(folder) if (folder / _INDEX).is_file() else _new_index(identity)
    if index["identity"] != dict(identity):
        raise DataError(f"{folder} holds tokens of other data; remove it, or name another cache folder")
    if index["complete"]:
        return
    num_records = sum(shard["num_records"] for shard in index["shards"])
    num_tokens = sum(shard["num_tokens"] for shard in index["shards"])
    shard = _Shard()

    def write(complete: bool) -> None:
        nonlocal shard
        if shard.record_ends:
            name = f"shard-{len(index['shards']):05d}.safetensors"
            arrays = shard.arrays()
            write_atomically(folder / name, lambda temporary: save_file(arrays, temporary, {"format": FORMAT}))
            entry = {"file": name, "num_records": len(shard.record_ends), "num_tokens": len(shard.ids)}
            index["shards"].append(entry)
        index["complete"] = complete
        write_json(folder / _INDEX, index)
        shard = _Shard()

    def is_full() -> bool:
        enough = max_records is not None and num_records >= max_records
        return enough or (max_tokens is not None and num_tokens >= max_tokens)

    if not is_full():
        for record in records(index["num_rows"]):
            shard.add(record)
            index["num_rows"] = record.row
            num_records += 1
            num_tokens += sum(map(len, record.parts))
            if progress is not None:
                progress(num_records, num_tokens)
            if is_full():
                break
            if len(shard.ids) >= shard_tokens:
                write(complete=False)
    write(complete=True)


def is_complete(folder: Path) -> bool:
    """Whether a store stands there and holds all it is to hold."""
    return (folder / _INDEX).is_file() and bool(_read_index(folder)["complete"])


class TokenStore:
    """A complete store, read from disk as it is needed.

    Args:
        folder: of the store.

    Attributes:
        digests: of every record, int64 `[records]`.
        lengths: tokens of every record's first part, int64 `[records]`.
        num_tokens: of all parts.

    Raises:
        DataError: the store is missing, not complete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = _read_index(folder)
        if not index["complete"]:
            raise DataError(f"{folder}: these tokens are not complete; make them with `genadapter prepare`")
        self._files: list[Any] = []
        self._part_ends: list[np.ndarray[Any, Any]] = []
        self._record_ends: list[np.ndarray[Any, Any]] = []
        digests = [np.zeros(0, np.int64)]
        lengths = [np.zeros(0, np.int64)]
        try:
            for shard in index["shards"]:
                file = safe_open(str(folder / shard["file"]), framework="numpy")
                part_ends = file.get_tensor("part_ends")
                record_ends = file.get_tensor("record_ends")
                if len(record_ends) != shard["num_records"]:
                    raise DataError(f"{folder / shard['file']} isn't what {_INDEX} tells of; remove {folder}")
                first = np.concatenate([[0], record_ends[:-1]]).astype(np.int64)
                begins = np.concatenate([[0], part_ends]).astype(np.int64)
                self._files.append(file)
                self._part_ends.append(part_ends)
                self._record_ends.append(record_ends)
                digests.append(file.get_tensor("digests"))
                lengths.append(part_ends[first] - begins[first])
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder} can't be read ({error}); remove it, and it is made again") from error
        self.digests: np.ndarray[Any, Any] = np.concatenate(digests)
        self.lengths: np.ndarray[Any, Any] = np.concatenate(lengths)
        self.num_tokens = sum(shard["num_tokens"] for shard in index["shards"])
        self._first_records = np.cumsum([0, *(len(ends) for ends in self._record_ends)])

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.digests)

    def tokens(self, record: int, start: int = 0, stop: int | None = None) -> list[int]:
        """Token ids `start` to `stop` of a record's first part."""
        shard, number = self._find(record)
        first = int(self._record_ends[shard][number - 1]) if number else 0
        return self._part(shard, first, start, stop)

    def parts(self, record: int) -> list[list[int]]:
        """All parts of a record."""
        shard, number = self._find(record)
        first = int(self._record_ends[shard][number - 1]) if number else 0
        return [self._part(shard, part) for part in range(first, int(self._record_ends[shard][number]))]

    def _find(self, record: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_records, record, side="right")) - 1
        return shard, record - int(self._first_records[shard])

    def _part(self, shard: int, part: int, start: int = 0, stop: int | None = None) -> list[int]:
        ends = self._part_ends[shard]
        begin = int(ends[part - 1]) if part else 0
        end = int(ends[part]) if stop is None else min(int(ends[part]), begin + stop)
        return self._files[shard].get_slice("ids")[begin + start : end].tolist() if begin + start < end else []


def _new_index(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "identity": dict(identity), "shards": [], "num_rows": 0, "complete": False}


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT or not {"identity", "shards", "num_rows", "complete"} <= index.keys():
            raise ValueError("its format is unknown")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read ({error}); remove {folder}, and it is made again") from error
    return index
