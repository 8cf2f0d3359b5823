"""vLLM's engine in `serving_simulation.py`: a batch that shares its rate, and adapters in slots and in a cache."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

PLACES = ("slot", "cpu", "disk", "first")  # where a request finds its adapter; first: nowhere, it is made


@dataclass(frozen=True)
class Costs:
    """What was measured, as the simulation uses it.

    Attributes:
        activate_seconds: from vLLM's cache into a slot; the engine stands still.
        load_seconds: from disk into cache and slot; the engine stands still.
        make_seconds: fetching a memory and making its adapter; one at a time in a process.
        answers_per_second: adapters in the batch -> requests in the batch -> answers/s.
        adapter_bytes: of an adapter on disk.
    """

    activate_seconds: float
    load_seconds: float
    make_seconds: float
    answers_per_second: Mapping[int, Mapping[int, float]]
    adapter_bytes: int


@dataclass(frozen=True)
class Limits:
    """Settings of a vLLM process and of trimming on its machine."""

    max_loras: int = 8
    max_cpu_loras: int = 64
    max_num_seqs: int = 32
    disk_bytes: float = 20e9
    trim_every_seconds: float = 60.0
    grace_seconds: float = 60.0


def rate_table(measured: Mapping[int, Mapping[int, float]], max_requests: int, max_adapters: int) -> list[list[float]]:
    """Answers/s by requests and adapters in the batch: linear between what was measured, constant beyond."""
    adapters = sorted(measured)
    requests = np.arange(max_requests + 1)
    rows = [np.interp(requests, sorted(row), [row[n] for n in sorted(row)]) for row in (measured[a] for a in adapters)]
    columns = np.array(rows)
    return [[float(np.interp(d, adapters, columns[:, n])) for d in range(min(max_adapters, n) + 1)] for n in requests]


class Engine:
    """vLLM's engine: a batch that shares its rate among its requests, and adapters in slots and in a cache.

    Every answer is the same amount of work. A batch of n requests under d adapters gives `rates[n][d]` answers/s, 1/n
    of it to each; loading an adapter stops all of them. Requests are taken in as they came, but for those that would
    need one slot more than there are.

    Attributes:
        busy_seconds: with a request in the batch or an adapter to load.
        loading_seconds: of those, standing still to load adapters or bring them into slots.
    """

    def __init__(self, env: simpy.Environment, costs: Costs, limits: Limits) -> None:
        self._env, self._costs, self._limits = env, costs, limits
        self._rates = rate_table(costs.answers_per_second, limits.max_num_seqs, limits.max_loras)
        self._slots: OrderedDict[int, None] = OrderedDict()
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._active: Counter[int] = Counter()  # adapter -> requests in the batch
        self._batch: list[tuple[float, int, int, str, simpy.Event]] = []  # a heap: progress at the end, ...
        self._queue: deque[tuple[int, int]] = deque()  # of (number, adapter), as they came
        self._queues: dict[int, deque[tuple[int, simpy.Event]]] = {}  # the same by adapter
        self._numbers, self._version = itertools.count(), 0
        self._progress, self._since, self._stalled_until = 0.0, env.now, env.now
        self.busy_seconds = self.loading_seconds = 0.0

    def place(self, adapter: int) -> str:
        """Brings an adapter into a slot, where one is free or idle; tells where it was, for nothing."""
        if adapter in self._cache:
            self._cache.move_to_end(adapter)
            found = "slot" if adapter in self._slots else "cpu"
        else:
            if len(self._cache) >= self._limits.max_cpu_loras and (oldest := self._idle(self._cache)) is not None:
                del self._cache[oldest]
                self._slots.pop(oldest, None)
            self._cache[adapter] = None
            found = "disk"
        if found == "slot":
            self._slots.move_to_end(adapter)
        elif len(self._slots) < self._limits.max_loras:
            self._slots[adapter] = None
        elif (oldest := self._idle(self._slots)) is not None:
            del self._slots[oldest]
            self._slots[adapter] = None
        return found

    def load(self, adapter: int) -> simpy.Event:
        """Loads an adapter that was just resolved; the event comes when it is there."""
        self._advance()
        self.place(adapter)
        self._stall(self._costs.load_seconds)
        self._plan()
        return self._env.timeout(self._stalled_until - self._env.now)

    def submit(self, adapter: int) -> simpy.Event:
        """A request; the event comes with its answer, and tells where it found its adapter."""
        done, number = self._env.event(), next(self._numbers)
        self._queue.append((number, adapter))
        self._queues.setdefault(adapter, deque()).append((number, done))
        self._advance()
        self._admit()
        self._plan()
        return done

    def account(self) -> None:
        """Brings `busy_seconds` up to now."""
        self._advance()

    def _idle(self, adapters: Iterable[int]) -> int | None:
        """The one least recently used that no request in the batch needs."""
        return next((adapter for adapter in adapters if adapter not in self._active), None)

    def _rate(self) -> float:
        return self._rates[len(self._batch)][len(self._active)]

    def _advance(self) -> None:
        now = self._env.now
        served_from = min(max(self._since, self._stalled_until), now)
        if self._batch:
            self._progress += (now - served_from) * self._rate() / len(self._batch)
            self.busy_seconds += now - self._since
        else:
            self._progress = 0.0
            self.busy_seconds += served_from - self._since
        self._since = now

    def _stall(self, seconds: float) -> None:
        self._stalled_until = max(self._stalled_until, self._env.now) + seconds
        self.loading_seconds += seconds

    def _admit(self) -> None:
        while len(self._batch) < self._limits.max_num_seqs and (taken := self._next()) is not None:
            number, adapter, done = taken
            self._active[adapter] += 1
            found = self.place(adapter)
            self._stall({"slot": 0.0, "cpu": self._costs.activate_seconds}.get(found, self._costs.load_seconds))
            heapq.heappush(self._batch, (self._progress + 1.0, number, adapter, found, done))

    def _next(self) -> tuple[int, int, simpy.Event] | None:
        """Takes the oldest request that fits out of the queue."""
        if len(self._active) < self._limits.max_loras:
            while self._queue:
                number, adapter = self._queue.popleft()
                waiting = self._queues.get(adapter)
                if waiting and waiting[0][0] == number:  # else it has been taken already
                    return self._take(adapter)
            return None
        heads = [(self._queues[adapter][0][0], adapter) for adapter in self._active if adapter in self._queues]
        return self._take(min(heads)[1]) if heads else None

    def _take(self, adapter: int) -> tuple[int, int, simpy.Event]:
        number, done = self._queues[adapter].popleft()
        if not self._queues[adapter]:
            del self._queues[adapter]
        return number, adapter, done

    def _plan(self) -> None:
        """Wakes the engine when the next answer is ready; an earlier plan no longer counts."""
        self._version += 1
        if not self._batch:
            return
        left = max(0.0, self._batch[0][0] - self._progress) * len(self._batch) / self._rate()
        wake = self._env.timeout(left + max(0.0, self._stalled_until - self._env.now), self._version)
        wake.callbacks.append(self._wake)

    def _wake(self, event: Any) -> None:
        if event.value != self._version:
            return
        self._advance()
        ready = max(self._progress, self._batch[0][0])  # what was planned is ready, whatever the rounding
        while self._batch and self._batch[0][0] <= ready + 1e-9:
            _, _, adapter, found, done = heapq.heappop(self._batch)
            self._active[adapter] -= 1
            if not self._active[adapter]:
                del self._active[adapter]
            done.succeed(found)
        self._admit()
        self._plan()
