"""Means over the lines of `samples.jsonl`, with their intervals: what `results.json` holds (docs/evaluation.md).

A row is a task, a method and a split: those of `run_folder.SPLITS` that the sample's metadata names. Numbers follow
from the lines alone, whatever their order in the file, so a run that was killed and continued has the same ones; wall
times apart. No torch. Leaves out: averages over tasks (`task_averages`), and how rows are shown (`report`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from generative_adapter.errors import ConfigError
from generative_adapter.evaluation.metrics import Estimate, bootstrap_mean
from generative_adapter.evaluation.result_rows import Average, CategoryRow, DrawSpread, Row
from generative_adapter.evaluation.results import QueryResult, SampleResult
from generative_adapter.evaluation.run_folder import SPLITS, RunFolder, merged_results, split_of
from generative_adapter.evaluation.task_averages import average_over_tasks

SCHEMA_VERSION = 1
RESULTS_FILE = "results.json"
REFERENCES = ("full-context", "closed-book")
CONTROL_REFERENCES = ("closed-book", "no-adapter")  # what another document's answers are compared to
COSTS = ("training_flops", "contextualizing_flops", "answering_flops", "stored_floats", "stored_bytes")


@dataclass(frozen=True)
class Summary:
    """What `results.json` holds.

    Attributes:
        runs: folders that were read.
        rows: tasks and methods in the order of the lines, splits ascending.
        categories: where queries have one.
        averages: over MetaICL tasks.
    """

    runs: tuple[RunFolder, ...]
    rows: tuple[Row, ...]
    categories: tuple[CategoryRow, ...]
    averages: tuple[Average, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values (docs/evaluation.md)."""
        runs = [
            {
                "folder": run.name,
                "settings": dict(run.settings),
                "num_samples": len(run.results),
                "num_missing": run.num_missing,
            }
            for run in self.runs
        ]
        tables = {name: [asdict(row) for row in getattr(self, name)] for name in ("rows", "categories", "averages")}
        forgetting = [{"folder": run.name, **_measured_forgetting(run)} for run in self.runs if run.forgetting]
        return {"schema_version": SCHEMA_VERSION, "runs": runs, **tables, "forgetting": forgetting}


def summarize(runs: Sequence[RunFolder], reference: str | None = None) -> Summary:
    """All means of the folders' lines.

    Args:
        runs: see `read_folder`.
        reference: method that the others are compared to on the same queries; None: for each task the first of
            `REFERENCES`, for a control of `CONTROL_REFERENCES`, that answered it.

    Raises:
        ConfigError: there is no line of the reference.
        DataError: as `merged_results`.
    """
    results = merged_results(runs)
    methods = list(dict.fromkeys(result.method for result in results))
    if reference is not None and reference not in methods:
        raise ConfigError(f"reference {reference!r}: no such method in the results; expected one of {methods}")
    groups: dict[tuple[str, str, str], list[SampleResult]] = {}
    for result in results:
        groups.setdefault((result.task, json.dumps(split_of(result)), result.method), []).append(result)
    tasks = list(dict.fromkeys(result.task for result in results))
    answered_by = {task: {method for other, _, method in groups if other == task} for task in tasks}
    rows: list[Row] = []
    categories: list[CategoryRow] = []
    order = sorted(groups, key=lambda key: (tasks.index(key[0]), *_split_order(key[1]), methods.index(key[2])))
    for task, split, method in order:
        own = sorted(groups[task, split, method], key=lambda result: result.sample)
        usual = CONTROL_REFERENCES if "control" in json.loads(split) else REFERENCES
        names = usual if reference is None else (reference,)
        compared = next((name for name in names if name in answered_by[task]), None)
        theirs = [] if compared in (None, method) else groups.get((task, split, str(compared)), [])
        rows.append(_row(own, theirs))
        categories += _category_rows(own)
    return Summary(tuple(runs), tuple(rows), tuple(categories), tuple(average_over_tasks(rows)))


def _split_order(split: str) -> tuple[Any, ...]:
    """Numbers ascending, before texts."""
    values = json.loads(split)
    numbers = [values.get(name, 0) for name in SPLITS]
    return tuple((0, value, "") if isinstance(value, int | float) else (1, 0, str(value)) for value in numbers)


def _row(own: Sequence[SampleResult], theirs: Sequence[SampleResult]) -> Row:
    first = own[0]
    metrics = tuple(dict.fromkeys(name for result in own for name in result.metrics))
    pairs = [(result, query) for result in own for query in result.queries]
    values = _estimates(pairs, metrics)
    reference_values = {(result.sample, query.id): query.values for result in theirs for query in result.queries}
    differences = {}
    for name in metrics:
        paired = [
            (query.values[name] - reference_values[result.sample, query.id][name], _cluster(result))
            for result, query in pairs
            if name in query.values and name in reference_values.get((result.sample, query.id), {})
        ]
        if paired:
            differences[name] = bootstrap_mean(*zip(*paired, strict=True))
    return Row(
        task=first.task,
        method=first.method,
        split=split_of(first),
        classification=first.metadata.get("classification"),
        wordings=tuple(sorted({result.wording for result in own})),
        metrics=metrics,
        num_queries=len(pairs),
        num_contexts=len({result.context_id for result in own}),
        num_samples=len(own),
        values=values,
        draws=_draws(own, metrics),
        costs=_costs(own),
        measured=_measured(own),
        reference=theirs[0].method if differences else None,
        differences=differences,
    )


def _estimates(pairs: Sequence[tuple[SampleResult, QueryResult]], metrics: Iterable[str]) -> dict[str, Estimate]:
    estimates = {}
    for name in metrics:
        judged = [(query.values[name], _cluster(result)) for result, query in pairs if name in query.values]
        if judged:
            estimates[name] = bootstrap_mean(*zip(*judged, strict=True))
    return estimates


def _cluster(result: SampleResult) -> str:
    """What intervals resample: what the task says that samples share, else the context."""
    return str(result.metadata.get("cluster", result.context_id))


def _measured_forgetting(run: RunFolder) -> dict[str, Any]:
    return {name: run.forgetting.get(name, {}) for name in ("interference", "general_ability")}


def _draws(own: Sequence[SampleResult], metrics: Iterable[str]) -> dict[str, DrawSpread]:
    spreads = {}
    for name in metrics:
        by_draw: dict[str, list[float]] = {}
        for result in own:
            if "draw" in result.metadata:
                values = by_draw.setdefault(str(result.metadata["draw"]), [])
                values += [query.values[name] for query in result.queries if name in query.values]
        if means := {draw: statistics.fmean(values) for draw, values in by_draw.items() if values}:
            spreads[name] = DrawSpread.of(means)
    return spreads


def _category_rows(own: Sequence[SampleResult]) -> list[CategoryRow]:
    by_category: dict[str, list[tuple[SampleResult, QueryResult]]] = {}
    for result in own:
        for query in result.queries:
            if "category" in query.metadata:
                by_category.setdefault(str(query.metadata["category"]), []).append((result, query))
    metrics = tuple(dict.fromkeys(name for result in own for name in result.metrics))
    return [
        CategoryRow(own[0].task, own[0].method, split_of(own[0]), name, len(pairs), _estimates(pairs, metrics))
        for name, pairs in sorted(by_category.items())
    ]


def _costs(own: Sequence[SampleResult]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in COSTS:
        told = [
            (float(result.costs[name] or 0.0), len(result.queries) if name == "answering_flops" else 1)
            for result in own
            if result.costs.get(name) is not None
        ]
        weight = sum(number for _, number in told)
        means[name] = sum(value * number for value, number in told) / weight if weight else None
    return means


def _measured(own: Sequence[SampleResult]) -> dict[str, float | None]:
    reading = _numbers(result.measured.get("contextualizing_seconds") for result in own)
    answering = [query.seconds for result in own for query in result.queries]
    peaks = _numbers(result.measured.get("peak_memory_bytes") for result in own)
    return {
        "contextualizing_seconds_mean": statistics.fmean(reading) if reading else None,
        "contextualizing_seconds_median": statistics.median(reading) if reading else None,
        "answering_seconds_mean": statistics.fmean(answering) if answering else None,
        "answering_seconds_median": statistics.median(answering) if answering else None,
        "peak_memory_bytes": max(peaks) if peaks else None,
    }


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None]
