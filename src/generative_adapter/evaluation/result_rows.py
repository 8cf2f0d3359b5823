"""The rows of `results.json`, as values (docs/evaluation.md). Leaves out: how they are computed (`summary`)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from generative_adapter.evaluation.metrics import Estimate


@dataclass(frozen=True)
class DrawSpread:
    """How much a mean varies with the draw of demonstrations.

    Attributes:
        mean: of the draws' means.
        standard_deviation: of the draws' means, with n - 1 in the denominator; None for a single draw.
        by_draw: the mean of each draw.
    """

    mean: float
    standard_deviation: float | None
    by_draw: Mapping[str, float]

    @classmethod
    def of(cls, by_draw: Mapping[str, float]) -> DrawSpread:
        """The spread of at least one draw's mean."""
        means = list(by_draw.values())
        return cls(statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None, dict(by_draw))


@dataclass(frozen=True)
class Row:
    """What a method reached on a task, or on one split of it.

    Attributes:
        task: name of the task.
        method: name of the method.
        split: metadata of the samples, by those names of `run_folder.SPLITS` that they have.
        classification: whether the task is one, where its samples say so.
        wordings: the names of those that were used.
        metrics: names, the main one first.
        num_queries: how many answers were judged.
        num_contexts: different contexts among the samples.
        num_samples: lines.
        values: by metric, in 0..1, with 95 % intervals over contexts.
        draws: by metric, where samples have a draw; else empty.
        costs: by the names of `summary.COSTS`: floating-point operations, numbers, bytes. Means over samples, that of
            `answering_flops` over queries.
        measured: wall times in seconds of taking in a context (samples) and of answering a query (queries), mean and
            median, and the highest `peak_memory_bytes`; None where nothing was measured.
        reference: the method that `differences` are to; None where there is none, or this is it.
        differences: by metric, this method's value less the reference's, over the queries that both have answered.
    """

    task: str
    method: str
    split: Mapping[str, Any]
    classification: bool | None
    wordings: tuple[str, ...]
    metrics: tuple[str, ...]
    num_queries: int
    num_contexts: int
    num_samples: int
    values: Mapping[str, Estimate]
    draws: Mapping[str, DrawSpread]
    costs: Mapping[str, float | None]
    measured: Mapping[str, float | None]
    reference: str | None = None
    differences: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class CategoryRow:
    """The queries of a row that share a category.

    Attributes:
        task: name of the task.
        method: name of the method.
        split: as the row's.
        category: of the queries' metadata.
        num_queries: how many.
        values: by metric, in 0..1, with 95 % intervals over contexts.
    """

    task: str
    method: str
    split: Mapping[str, Any]
    category: str
    num_queries: int
    values: Mapping[str, Estimate]


@dataclass(frozen=True)
class Average:
    """The mean of task means, of the main metrics of MetaICL tasks.

    Attributes:
        group: `classification`, `other` or `all`.
        method: name of the method.
        shots: number of demonstrations.
        tasks: those that count: all methods have them at these shots.
        num_left_out: tasks of this method that another method doesn't have.
        mean: in 0..1; each task counts the same.
        draws: the same average for each draw that all the tasks have; None where there is none.
    """

    group: str
    method: str
    shots: int
    tasks: tuple[str, ...]
    num_left_out: int
    mean: float
    draws: DrawSpread | None
