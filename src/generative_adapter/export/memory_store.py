"""MemoryStore: memories by name in a folder or an object store, for many processes that share them.

A memory is one file, `<id>.safetensors`, as `ContextMemory.save` and `genadapter contextualize -o` write it; so any
tool that copies files fills a store. Any URL that fsspec knows is one (`s3://bucket/memories` with `s3fs` installed).
Leaves out: making memories, and adapters of them (`adapter_folders`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generative_adapter.errors import ConfigError, DataError, MissingDependencyError
from generative_adapter.generator.memory import ContextMemory

_ENDING = ".safetensors"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def require_id(memory_id: str) -> None:
    """Raises ConfigError unless a memory may have that name: a file of its own, in the store and nowhere else."""
    if not _ID.fullmatch(memory_id) or memory_id.endswith(_ENDING):
        raise ConfigError(
            f"a memory can't be called {memory_id!r}: give up to 200 letters, digits, dots, dashes and underscores, a "
            f"letter or digit first, without the ending {_ENDING}"
        )


class MemoryStore:
    """Memories by name.

    Args:
        location: a folder, or a URL of fsspec. It is made when the first memory is put into it.

    Raises:
        ConfigError: when the URL is of no known kind.
        MissingDependencyError: when its kind needs a package that is not installed.
    """

    def __init__(self, location: str | Path) -> None:
        from fsspec.core import url_to_fs

        self.location = str(location)
        try:
            found = url_to_fs(self.location)
        except ImportError as error:
            raise MissingDependencyError(f"the store {self.location} can't be opened: {error}") from error
        except ValueError as error:
            raise ConfigError(f"the store {self.location} can't be opened: {error}") from error
        self._files: Any = found[0]
        self._root = str(found[1]).rstrip("/")

    def put(self, memory_id: str, memory: ContextMemory, dtype: str = "bfloat16") -> None:
        """Stores a memory under a name; one of that name is replaced, and a reader sees the old one or the new one.

        Args:
            memory_id: its name.
            memory: what to store.
            dtype: the form it is stored in (`ContextMemory.save`); the default is a quarter of `float64`, which alone
                lets documents be forgotten from sums without a trace later, and a half of kept tokens as they are.

        Raises:
            ConfigError: when the name or form is none.
        """
        require_id(memory_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory"
            memory.save(path, dtype)
            self._files.makedirs(self._root, exist_ok=True)
            if "file" in _protocols(self._files):  # an object appears whole; a file has to be moved into place
                hidden = f"{self._root}/.{memory_id}.{Path(folder).name}.tmp"
                self._files.put_file(str(path), hidden)
                Path(hidden).replace(self._path(memory_id))
            else:
                self._files.put_file(str(path), self._path(memory_id))

    def get(self, memory_id: str, expected_generator: str | None = None) -> ContextMemory:
        """The memory of that name.

        Raises:
            ConfigError: when no memory can have it.
            DataError: when there is none.
            CheckpointError: when its file is damaged.
            FingerprintMismatchError: when another generator than the expected one wrote it.
        """
        require_id(memory_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{memory_id}{_ENDING}"
            try:
                self._files.get_file(self._path(memory_id), str(path))
            except FileNotFoundError as error:
                raise DataError(f"the store {self.location} holds no memory {memory_id!r}") from error
            return ContextMemory.load(path, expected_generator)

    def version(self, memory_id: str) -> str | None:
        """What tells one content of a name from the next (size and time, or an object's tag); None: there is none."""
        require_id(memory_id)
        self._files.invalidate_cache()
        try:
            found = self._files.info(self._path(memory_id))
        except FileNotFoundError:
            return None
        marks = [found.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "updated", "created", "size")]
        return "/".join(str(mark) for mark in marks if mark is not None)

    def delete(self, memory_id: str) -> None:
        """Removes a memory; nothing happens where there is none."""
        require_id(memory_id)
        if self.version(memory_id) is not None:
            self._files.rm_file(self._path(memory_id))

    def ids(self) -> Iterator[str]:
        """The names of all memories, in order."""
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return
        for path in sorted(self._files.ls(self._root, detail=False)):
            name = str(path).rsplit("/", 1)[-1]
            if name.endswith(_ENDING) and _ID.fullmatch(name.removesuffix(_ENDING)):
                yield name.removesuffix(_ENDING)

    def _path(self, memory_id: str) -> str:
        return f"{self._root}/{memory_id}{_ENDING}"


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
