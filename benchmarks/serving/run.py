"""A run of `serving_simulation.py`: requests, documents, and what is told of them in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from serving.engine import PLACES, Costs, Limits
from serving.process import VllmProcess

MAX_WARM_UP = 3_000_000
_BLOCK = 10_000


@dataclass(frozen=True)
class Scenario:
    """What is simulated; rates are per second. `request_rate` and `document_rate` are of all processes together."""

    requests: int
    request_rate: float
    memories: int = 1_000_000
    exponent: float = 1.0
    processes: int = 4
    routing: str = "hash"
    workers: int = 1
    document_rate: float = 0.0
    document_seconds: float = 1.0
    update_share: float = 0.5
    warm_up: int | None = None
    seed: int = 0
    limits: Limits = field(default_factory=Limits)


class Level:
    """A number that changes in time, and its integral over time."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self._since, self._integral, self.value = env, env.now, 0.0, 0

    def add(self, difference: int) -> None:
        self._integral, self._since = self.integral(), self._env.now
        self.value += difference

    def integral(self) -> float:
        return self._integral + self.value * (self._env.now - self._since)


class Popularity:
    """Draws memories: 0 is the most popular."""

    def __init__(self, memories: int, exponent: float, random: np.random.Generator) -> None:
        self._random = random
        self._shares = np.cumsum(np.arange(1, memories + 1, dtype=np.float64) ** -exponent)
        self._shares /= self._shares[-1]

    def draw(self, number: int) -> np.ndarray:
        return np.searchsorted(self._shares, self._random.random(number), side="right")


def routed(memories: np.ndarray, scenario: Scenario, random: np.random.Generator) -> np.ndarray:
    """Which process each request goes to."""
    if scenario.routing == "random":
        return random.integers(scenario.processes, size=len(memories))
    mixed = memories.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # SplitMix64
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) % np.uint64(scenario.processes)


class Simulation:
    """One run; `report` after `run`.

    Args:
        scenario: what to simulate.
        costs: what was measured.
        progress: called with requests answered and requests in all.
    """

    def __init__(self, scenario: Scenario, costs: Costs, progress: Callable[[int, int], None] | None = None) -> None:
        self._scenario, self._costs, self._progress = scenario, costs, progress
        self._env = simpy.Environment()
        self._random = np.random.default_rng(scenario.seed)
        self._popularity = Popularity(scenario.memories, scenario.exponent, self._random)
        self._versions: Counter[int] = Counter()
        self._vllm = [VllmProcess(self._env, costs, scenario.limits, self._versions) for _ in range(scenario.processes)]
        self._workers = simpy.Resource(self._env, scenario.workers)
        self._reading, self._in_flight = Level(self._env), Level(self._env)
        self._new_memories = self._documents = self._warmed = 0
        self._waits: list[float] = []
        self._answered: list[tuple[float, str, float]] = []  # when it came, place, latency
        self._all_answered = self._env.event()

    def run(self) -> dict[str, Any]:
        self._warm_up()
        self._env.process(self._requests())
        if self._scenario.document_rate:
            self._env.process(self._documents_come())
        for process in self._vllm:
            self._env.process(process.trim())
        self._env.run(self._all_answered)
        return self._report()

    def _warm_up(self) -> None:
        scenario = self._scenario
        fitting = scenario.processes * scenario.limits.disk_bytes / self._costs.adapter_bytes
        left = scenario.warm_up
        if left is None:
            left = int(min(MAX_WARM_UP, 10 * min(fitting, scenario.processes * scenario.memories)))
        self._warmed = left
        while left > 0:
            memories = self._popularity.draw(min(left, _BLOCK))
            for memory, process in zip(
                memories.tolist(), routed(memories, scenario, self._random).tolist(), strict=True
            ):
                self._vllm[process].warm(memory)
            left -= _BLOCK

    def _requests(self) -> Generator[simpy.Event, Any, None]:
        scenario, left = self._scenario, self._scenario.requests
        while left > 0:
            memories = self._popularity.draw(min(left, _BLOCK))
            gaps = self._random.exponential(1 / scenario.request_rate, len(memories))
            processes = routed(memories, scenario, self._random)
            for memory, gap, process in zip(memories.tolist(), gaps.tolist(), processes.tolist(), strict=True):
                yield self._env.timeout(gap)
                self._env.process(self._request(memory, self._vllm[process]))
            left -= _BLOCK

    def _request(self, memory: int, process: VllmProcess) -> Generator[simpy.Event, Any, None]:
        came = self._env.now
        self._in_flight.add(1)
        place = yield from process.answer(memory)
        self._in_flight.add(-1)
        self._answered.append((came, place, self._env.now - came))
        answered, total = len(self._answered), self._scenario.requests
        if self._progress and (answered % 1000 == 0 or answered == total):
            self._progress(answered, total)
        if answered == total:
            self._all_answered.succeed()

    def _documents_come(self) -> Generator[simpy.Event, Any, None]:
        while True:
            yield self._env.timeout(self._random.exponential(1 / self._scenario.document_rate))
            self._env.process(self._document())

    def _document(self) -> Generator[simpy.Event, Any, None]:
        came, updates = self._env.now, self._random.random() < self._scenario.update_share
        memory = int(self._popularity.draw(1)[0]) if updates else None
        with self._workers.request() as turn:
            yield turn
            self._waits.append(self._env.now - came)
            self._reading.add(1)
            yield self._env.timeout(self._scenario.document_seconds)
            self._reading.add(-1)
        self._documents += 1
        if memory is None:
            self._new_memories += 1
            return
        self._versions[memory] += 1
        for process in self._vllm:
            process.unload(memory)

    def _report(self) -> dict[str, Any]:
        scenario, seconds = self._scenario, float(self._env.now)
        self._answered.sort()
        latencies = [latency for _, _, latency in self._answered]
        by_place = {place: [latency for _, found, latency in self._answered if found == place] for place in PLACES}
        quarter = max(1, len(latencies) // 4)
        for process in self._vllm:
            process.engine.account()
        busy = [process.engine.busy_seconds / seconds for process in self._vllm]
        disks = [process.disk.num_bytes / 1e9 for process in self._vllm]
        return {
            "simulated_seconds": seconds,
            "warm_up_requests": self._warmed,
            "found": {place: len(each) / len(latencies) for place, each in by_place.items()},
            "latency_seconds": described(latencies),
            "latency_seconds_by_place": {place: described(each) for place, each in by_place.items()},
            "latency_growth": float(
                np.mean(latencies[-quarter:]) / np.mean(latencies[quarter : 2 * quarter] or latencies)
            ),
            "vllm": {
                "answers_per_second": len(latencies) / seconds,
                "utilisation": float(np.mean(busy)),
                "busiest_utilisation": max(busy),
                "loading_share": float(np.mean([process.engine.loading_seconds for process in self._vllm])) / seconds,
                "requests_in_flight": self._in_flight.integral() / seconds / scenario.processes,
                "names": max(len(process.names) for process in self._vllm),
            },
            "contextualising": {
                "documents": self._documents,
                "utilisation": self._reading.integral() / seconds / scenario.workers,
                "wait_seconds": described(self._waits),
                "waiting": len(self._workers.queue),
            },
            "disk": {
                "mean_gb": float(np.mean(disks)),
                "largest_gb": max(disks),
                "trimmed": sum(process.trimmed for process in self._vllm),
                "asked_for_while_trimming": sum(process.spared for process in self._vllm),
            },
            "memories": scenario.memories + self._new_memories,
        }


def described(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles; None of nothing."""
    if not seconds:
        return None
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return {"mean": float(np.mean(seconds)), "p50": float(p50), "p95": float(p95), "p99": float(p99)}
