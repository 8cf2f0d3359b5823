"""What the methods cost, and how much was asked: tables over all tasks.

MetaICL's tasks share a table, and so do the depths of a needle; a number there is the mean over them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from generative_adapter.evaluation.report import formats
from generative_adapter.evaluation.report.layout import Block, Table
from generative_adapter.evaluation.result_rows import Row

COSTS_TOPIC, COUNTS_TOPIC = "Costs", "What was asked"
_COLUMNS = (
    ("training, TFLOPs", "training_flops", 1e12),
    ("a context, TFLOPs", "contextualizing_flops", 1e12),
    ("a query, TFLOPs", "answering_flops", 1e12),
    ("M floats stored", "stored_floats", 1e6),
    ("MB stored", "stored_bytes", 1e6),
    ("a context, s", "contextualizing_seconds_mean", 1.0),
    ("a query, s", "answering_seconds_mean", 1.0),
    ("a query, s (median)", "answering_seconds_median", 1.0),
    ("peak memory, GB", "peak_memory_bytes", 1e9),
)
_NOTES = (
    "Operations are computed from the model's sizes; training counts once, whatever the number of contexts, "
    "and a dash says that a generator's file doesn't tell it. Times and "
    "memory are measured on this run's machine and differ from run to run.",
)


def cost_tables(rows: Sequence[Row]) -> list[Table]:
    """A table a data set: a block a split, a row a method."""
    tables = []
    for title, own in _by_title(rows).items():
        blocks = []
        for split in dict.fromkeys(_split(row) for row in own):
            lines = []
            for method in dict.fromkeys(row.method for row in own):
                same = [row for row in own if row.method == method and _split(row) == split]
                if same:
                    lines.append((method, *(_mean(same, name, scale) for _, name, scale in _COLUMNS)))
            blocks.append(Block(tuple(lines), split))
        columns = ("method", *(name for name, _, _ in _COLUMNS))
        tables.append(Table(f"Costs: {title}", columns, tuple(blocks), _NOTES, COSTS_TOPIC))
    return tables


def counts_table(rows: Sequence[Row]) -> Table:
    """Contexts, queries and wordings of every method."""
    blocks = []
    for title, own in _by_title(rows).items():
        lines = []
        for method in dict.fromkeys(row.method for row in own):
            same = [row for row in own if row.method == method]
            wordings = dict.fromkeys(wording for row in same for wording in row.wordings)
            numbers = (sum(row.num_contexts for row in same), sum(row.num_queries for row in same))
            lines.append((method, *(f"{number:,}" for number in numbers), "; ".join(wordings)))
        blocks.append(Block(tuple(lines), title))
    return Table("Contexts, queries and wordings", ("method", "contexts", "queries", "wordings"), tuple(blocks),
                 ("Summed over splits and tasks.",), COUNTS_TOPIC)  # fmt: skip


def _by_title(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = "MetaICL" if formats.is_averaged(row) else formats.heading(row)
        groups.setdefault(title, []).append(row)
    return groups


def _split(row: Row) -> str:
    return formats.split_label({name: value for name, value in row.split.items() if name != "depth"})


def _mean(rows: Sequence[Row], name: str, scale: float) -> str:
    found = [{**row.costs, **row.measured}[name] for row in rows]
    values = [value for value in found if value is not None]
    if not values:
        return formats.NOTHING
    return formats.significant(max(values) if name == "peak_memory_bytes" else statistics.fmean(values), scale)
