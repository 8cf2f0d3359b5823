"""Trimming: the adapters on a machine's disk that were least recently asked for make room; they can be made anew.

vLLM's API server keeps the folder of every name that it has resolved, its worker reads the folder again whenever its
own cache has dropped the adapter, and a folder that is gone by then ends the engine. So an adapter leaves in this
order: every server forgets its name, requests that were taken in before come to their end, and only then is the folder
deleted; one that was asked for again meanwhile stays. Leaves out: making adapters (`adapter_folders`).
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from generative_adapter.errors import ConfigError
from generative_adapter.export.peft import CONFIG_FILE
from generative_adapter.export.vllm_server import VllmServer

_ADAPTER = re.compile(r"[0-9a-f]{16}")  # as AdapterFolders calls them
_HALF_MADE = re.compile(r"\.[0-9a-f]{16}\..+\.partial")  # as new_folder calls what it fills
_HALF_DELETED = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{32}\.trimmed")
_STALE_SECONDS = 3600  # no adapter takes that long to make


@dataclass(frozen=True)
class StoredAdapter:
    """One adapter on this disk.

    Attributes:
        memory_id: of the memory it was made of.
        folder: its PEFT folder.
        num_bytes: of its files.
        used_ns: when it was made or last handed out, in ns since 1970.
    """

    memory_id: str
    folder: Path
    num_bytes: int
    used_ns: int


@dataclass(frozen=True)
class TrimReport:
    """What trimming did.

    Attributes:
        removed: adapters deleted.
        removed_bytes: of those.
        in_use: adapters that were to go, but were asked for again while requests came to their end; they stay.
        kept: adapters left, those in use among them.
        kept_bytes: of those.
    """

    removed: int
    removed_bytes: int
    in_use: int
    kept: int
    kept_bytes: int


def stored_adapters(folder: str | Path) -> list[StoredAdapter]:
    """The adapters that `AdapterFolders` has put into a folder, least recently made or handed out first."""
    found = []
    for owner in _subfolders(Path(folder)):
        for path in _subfolders(owner):
            if _ADAPTER.fullmatch(path.name) and (used_ns := _used_ns(path)) is not None:
                found.append(StoredAdapter(owner.name, path, _num_bytes(path), used_ns))
    return sorted(found, key=lambda adapter: adapter.used_ns)


def trim_adapters(
    folder: str | Path, max_bytes: int, servers: Sequence[VllmServer] = (), *, grace_seconds: float = 60.0
) -> TrimReport:
    """Deletes adapters until the others hold at most `max_bytes`.

    Of a memory that has changed, the adapters of what it was before go first, then those that were least recently made
    or handed out. Those that are asked for again between unloading and deleting stay, so that more may be left than
    `max_bytes`: trim again later. Leftovers of processes that died are deleted too. Where an error ends it early,
    nothing is deleted that a server may still hold.

    Args:
        folder: of the adapters (`AdapterFolders`).
        max_bytes: what may stay.
        servers: every vLLM server that takes adapters out of this folder; none: no server runs.
        grace_seconds: how long a request may take in vLLM, waiting included. Between unloading and deleting that time
            passes, where there are servers and something is to be deleted.

    Raises:
        ConfigError: when a number is negative, or a server can't be reached or refuses.
    """
    folder = Path(folder)
    if max_bytes < 0 or grace_seconds < 0:
        raise ConfigError(f"neither may be negative: max_bytes {max_bytes}, grace_seconds {grace_seconds}")
    _delete_leftovers(folder)
    stored = stored_adapters(folder)
    chosen = _choose(stored, max_bytes)
    hidden: list[Path] = []
    removed: list[StoredAdapter] = []
    if chosen:
        for server in servers:
            server.check()
        _unload(servers, chosen)
        if servers:
            time.sleep(grace_seconds)
        for adapter in chosen:
            if _used_ns(adapter.folder) == adapter.used_ns and (path := _hide(adapter.folder)) is not None:
                hidden.append(path)
                removed.append(adapter)
        _unload(servers, removed)  # one could have been resolved just before its folder was hidden
        for path in hidden:
            _delete(path)
    removed_bytes = sum(adapter.num_bytes for adapter in removed)
    return TrimReport(
        removed=len(removed),
        removed_bytes=removed_bytes,
        in_use=len(chosen) - len(removed),
        kept=len(stored) - len(removed),
        kept_bytes=sum(adapter.num_bytes for adapter in stored) - removed_bytes,
    )


def _choose(stored: Sequence[StoredAdapter], max_bytes: int) -> list[StoredAdapter]:
    """Which adapters are to go; `stored` comes least recently used first."""
    newest = {adapter.memory_id: adapter.used_ns for adapter in stored}  # the last of each memory stays in the dict
    excess = sum(adapter.num_bytes for adapter in stored) - max_bytes
    chosen = []
    for adapter in sorted(stored, key=lambda adapter: adapter.used_ns == newest[adapter.memory_id]):
        if excess <= 0:
            break
        chosen.append(adapter)
        excess -= adapter.num_bytes
    return chosen


def _unload(servers: Sequence[VllmServer], adapters: Sequence[StoredAdapter]) -> None:
    memory_ids = sorted({adapter.memory_id for adapter in adapters})
    for server in servers:
        server.unload(memory_ids)


def _hide(folder: Path) -> Path | None:
    """Renames a folder, so that it is there whole or not at all; its new name, None where it is gone already."""
    hidden = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.trimmed")
    try:
        return folder.rename(hidden)
    except FileNotFoundError:
        return None


def _delete(hidden: Path) -> None:
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):  # the memory has other adapters, or one is being made
        hidden.parent.rmdir()


def _delete_leftovers(folder: Path) -> None:
    """Deletes what was half deleted, and what has been half made for longer than making takes."""
    oldest = time.time() - _STALE_SECONDS
    for owner in _subfolders(folder):
        for path in _subfolders(owner):
            with suppress(FileNotFoundError):
                half_made = _HALF_MADE.fullmatch(path.name) and path.stat().st_mtime < oldest
                if half_made or _HALF_DELETED.fullmatch(path.name):
                    _delete(path)


def _subfolders(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from (path for path in list(folder.iterdir()) if path.is_dir() and not path.is_symlink())


def _used_ns(folder: Path) -> int | None:
    """When an adapter was made or last handed out; None: there is none in the folder."""
    try:
        return (folder / CONFIG_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _num_bytes(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _files(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []
