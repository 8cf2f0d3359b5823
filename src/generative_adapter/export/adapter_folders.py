"""AdapterFolders: PEFT folders of the memories of a store, each made when it is first asked for.

No base model is loaded: an adapter is made from the memory and the generator's weights alone. Leaves out: who loads the
folders (`vllm_plugin`), and who deletes them (`trimming`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.errors import DataError
from generative_adapter.export.memory_store import MemoryStore, require_id
from generative_adapter.export.peft import CONFIG_FILE, save_peft


class AdapterFolders:
    """A folder on this machine's disk that holds the adapters of a store's memories.

    Several processes may share it: a folder appears whole, and one that two make at once is the same in both.

    Args:
        store: where the memories are.
        checkpoint: the generator that wrote them.
        folder: of the adapters.
        rank: the largest in adapters, one that engines take; None: the least that loses nothing.
        dtype: `bf16`, `fp16` or `fp32`.
        base_name: the base model's name in the adapters; None: the generator's.
    """

    def __init__(
        self,
        store: MemoryStore,
        checkpoint: GeneratorCheckpoint,
        folder: Path,
        *,
        rank: int | None = None,
        dtype: str = "bf16",
        base_name: str | None = None,
    ) -> None:
        self.store, self.checkpoint, self.folder = store, checkpoint, Path(folder)
        self._rank, self._dtype = rank, dtype
        self._base_name = base_name or checkpoint.base_name
        self._fingerprint = checkpoint.fingerprint
        self._lock = threading.Lock()

    def adapter(self, memory_id: str) -> Path | None:
        """The PEFT folder of a memory as it is now; None: the store has no such memory.

        A folder that is there already is marked as used: the time of its config file becomes the present.

        Raises:
            ConfigError: when no memory can have that name.
            CheckpointError: when its file is damaged.
            FingerprintMismatchError: when another generator wrote it.
        """
        require_id(memory_id)
        version = self.store.version(memory_id)
        if version is None:
            return None
        marks = f"{version}/{self._fingerprint}/{self._rank}/{self._dtype}/{self._base_name}"
        path = self.folder / memory_id / hashlib.sha256(marks.encode()).hexdigest()[:16]
        with self._lock:
            for is_last in (False, True):
                if _mark_used(path):
                    return path
                try:
                    memory = self.store.get(memory_id, self._fingerprint)
                except DataError:  # deleted since
                    return None
                adapter = self.checkpoint.generator.adapter(memory.states)
                try:
                    save_peft(adapter, path, self._base_name, rank=self._rank, dtype=self._dtype, one_rank=False)
                    break
                except OSError:  # another process put the same folder there, or trimmed the one around it, meanwhile
                    if is_last:
                        raise
        return path


def _mark_used(path: Path) -> bool:
    """Whether an adapter is there; if so, it has been used now."""
    try:
        os.utime(path / CONFIG_FILE)
        return True
    except OSError:  # there is none, or it can be read only
        return (path / CONFIG_FILE).is_file()
