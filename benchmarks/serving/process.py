"""vLLM processes with their names and disks, for `serving_simulation.py`."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Generator, Mapping
from typing import Any

import simpy

from serving.engine import Costs, Engine, Limits


class Disk:
    """The adapters on a machine, by (memory, version), least recently made or handed out first."""

    def __init__(self, adapter_bytes: int, max_bytes: float) -> None:
        self._adapter_bytes, self._max_bytes = adapter_bytes, max_bytes
        self._used: OrderedDict[tuple[int, int], float] = OrderedDict()
        self._newest: dict[int, int] = {}
        self._outdated: dict[tuple[int, int], None] = {}

    @property
    def num_bytes(self) -> int:
        return len(self._used) * self._adapter_bytes

    def take(self, key: tuple[int, int], now: float) -> bool:
        """Whether an adapter is there; it has been used now, or is put there now."""
        found = key in self._used
        self._used[key] = now
        self._used.move_to_end(key)
        memory, version = key
        if self._newest.get(memory, version) < version and (before := (memory, self._newest[memory])) in self._used:
            self._outdated[before] = None
        self._newest[memory] = version
        return found

    def has(self, key: tuple[int, int]) -> bool:
        return key in self._used

    def chosen(self) -> dict[tuple[int, int], float]:
        """What trimming would delete, and when that was used: outdated versions first."""
        excess = self.num_bytes - self._max_bytes
        number = int(-(-excess // self._adapter_bytes)) if excess > 0 else 0
        oldest = (key for key in self._used if key not in self._outdated)
        return {key: self._used[key] for key in itertools.islice(itertools.chain(self._outdated, oldest), number)}

    def delete(self, key: tuple[int, int], used: float) -> bool:
        """Deletes an adapter unless it was used since."""
        if self._used.get(key) != used:
            return False
        del self._used[key]
        self._outdated.pop(key, None)
        if self._newest.get(key[0]) == key[1]:
            del self._newest[key[0]]
        return True


class VllmProcess:
    """A vLLM process on a machine of its own: names that it has resolved, its engine, its disk.

    Args:
        env: of SimPy.
        costs: measured.
        limits: its settings.
        versions: how often each memory has changed.
    """

    def __init__(self, env: simpy.Environment, costs: Costs, limits: Limits, versions: Mapping[int, int]) -> None:
        self._env, self._costs, self._limits, self._versions = env, costs, limits, versions
        self.engine, self.disk = Engine(env, costs, limits), Disk(costs.adapter_bytes, limits.disk_bytes)
        self.names: dict[int, int] = {}  # memory -> number of its adapter, new at each resolution
        self._resolving: dict[int, simpy.Event] = {}
        self._unloading: set[int] = set()
        self._maker = simpy.Resource(env)
        self._numbers = itertools.count()
        self.trimmed = self.spared = 0

    def warm(self, memory: int) -> None:
        """A request that takes no time: only what it leaves in caches and on disk counts."""
        if memory in self.names:
            self.engine.place(self.names[memory])
            return
        self.names[memory] = next(self._numbers)
        self.engine.place(self.names[memory])
        self.disk.take((memory, self._versions.get(memory, 0)), self._env.now)
        for key, used in self.disk.chosen().items():
            self.disk.delete(key, used)
            self.unload(key[0])

    def unload(self, memory: int) -> None:
        """Forgets the adapter of a name, also one that is being resolved; the next request resolves it again."""
        self.names.pop(memory, None)
        if memory in self._resolving:
            self._unloading.add(memory)

    def answer(self, memory: int) -> Generator[simpy.Event, Any, str]:
        """A request; gives the place where it found its adapter."""
        adapter, resolved = self.names.get(memory), None
        if adapter is None:
            if memory not in self._resolving:
                self._resolving[memory] = self._env.process(self._resolve(memory))
            adapter, resolved = yield self._resolving[memory]
        found = yield self.engine.submit(adapter)
        return resolved or found

    def _resolve(self, memory: int) -> Generator[simpy.Event, Any, tuple[int, str]]:
        key = (memory, self._versions.get(memory, 0))
        place = "disk"
        if not self.disk.has(key):
            place = "first"
            with self._maker.request() as turn:
                yield turn
                yield self._env.timeout(self._costs.make_seconds)
        self.disk.take(key, self._env.now)
        adapter = next(self._numbers)
        yield self.engine.load(adapter)
        if memory in self._unloading:
            self._unloading.remove(memory)
        else:
            self.names[memory] = adapter
        del self._resolving[memory]
        return adapter, place

    def trim(self) -> Generator[simpy.Event, Any, None]:
        """What `genadapter trim-adapters --every` does, for ever."""
        while True:
            yield self._env.timeout(self._limits.trim_every_seconds)
            chosen = self.disk.chosen()
            if not chosen:
                continue
            for memory, _ in chosen:
                self.unload(memory)
            yield self._env.timeout(self._limits.grace_seconds)
            for key, used in chosen.items():
                deleted = self.disk.delete(key, used)
                self.trimmed, self.spared = self.trimmed + deleted, self.spared + (not deleted)
                if deleted:
                    self.unload(key[0])
