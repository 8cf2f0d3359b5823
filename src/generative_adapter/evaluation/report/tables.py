"""The tables of a report: document QA over lengths, MetaICL, personalisation, needle, controls; costs (`cost_tables`).

Shares are in percent with their 95 % interval. Published rows stand in a block of their own. Leaves out: how a table is
written (`layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from generative_adapter.evaluation.report import formats, published
from generative_adapter.evaluation.report.cost_tables import cost_tables, counts_table
from generative_adapter.evaluation.report.forgetting_tables import control_table, forgetting_tables
from generative_adapter.evaluation.report.formats import NOTHING
from generative_adapter.evaluation.report.layout import Block, Table
from generative_adapter.evaluation.result_rows import CategoryRow, Row
from generative_adapter.evaluation.summary import Summary
from generative_adapter.evaluation.task_averages import GROUPS

OWN_BLOCK = "this run"
PUBLISHED_BLOCK = f"published for {{}} with {published.MODEL} ({published.PAPER}), not with this run's base model"
_GROUP_TITLES = {"classification": "classification tasks", "other": "other tasks", "all": "all tasks"}
_INTERVALS = "In brackets: 95 % bootstrap intervals over contexts."


def all_tables(summary: Summary) -> list[Table]:
    """Every table that the rows give, in the order of a report."""
    tables: list[Table] = []
    for rows in rows_by_heading(summary.rows).values():
        if formats.is_averaged(rows[0]):
            continue
        if "control" in rows[0].split:
            tables.append(control_table(rows))
        elif "depth" in rows[0].split:
            tables += _needle_tables(rows)
        elif set(rows[0].split) == {"context_tokens"}:
            tables += _length_tables(rows)
        elif rows[0].task.split("/", 1)[0] == "personalisation":
            tables += _personalisation_tables(rows)
        else:
            tables += _plain_tables(rows)
        tables += _category_tables(rows, summary.categories)
    tables += forgetting_tables(summary.runs)
    tables += _average_tables(summary)
    return [*tables, *cost_tables(summary.rows), counts_table(summary.rows)]


def rows_by_heading(rows: Iterable[Row]) -> dict[tuple[str, tuple[str, ...]], list[Row]]:
    """Rows that share a table: the same data set, the same kind of split."""
    groups: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((formats.heading(row), tuple(row.split)), []).append(row)
    return groups


def _length_tables(rows: Sequence[Row]) -> list[Table]:
    """F1, then the other metrics and the differences: a row a method, a column a length."""
    lengths = sorted({row.split["context_tokens"] for row in rows})
    known = published.data_set_of(formats.data_set(rows[0]))
    curves = published.DOCUMENT_QA.get(known or "", ()) if formats.family(rows[0]) == "Document QA" else ()
    columns = ("method", *(formats.tokens_label(length) for length in lengths))
    tables = []
    for metric in rows[0].metrics:
        own = _grid(rows, "context_tokens", lengths, lambda row, name=metric: row.values.get(name))
        blocks = [Block(own, OWN_BLOCK if curves and metric == "f1" else "")]
        notes = ["Columns: mean tokens of a context.", _INTERVALS]
        if curves and metric == "f1":
            theirs = [
                (item.label, *(f"{item.values[size]:.1f}" if size in item.values else NOTHING for size in lengths))
                for item in curves
            ]
            blocks.append(Block(tuple(theirs), PUBLISHED_BLOCK.format(known)))
            notes.append("Published rows without a context are the same at all lengths.")
        title = f"{formats.heading(rows[0])}: {formats.metric_label(metric)}, %"
        tables.append(Table(title, columns, tuple(blocks), tuple(notes), formats.family(rows[0])))
    compared = [row for row in rows if row.differences]
    if compared:
        metric = rows[0].metrics[0]
        body = _grid(
            compared,
            "context_tokens",
            lengths,
            lambda row: row.differences.get(metric),
            formats.percent_difference,
        )
        tables.append(_difference_table(rows, columns, body, metric))
    return tables


def _difference_table(rows: Sequence[Row], columns: tuple[str, ...], body: Any, metric: str) -> Table:
    references = dict.fromkeys(row.reference for row in rows if row.reference)
    title = f"{formats.heading(rows[0])}: {formats.metric_label(metric)} less that of {' or '.join(references)}, points"
    return Table(
        title,
        columns,
        (Block(body),),
        ("Paired: the same questions of the same contexts.", _INTERVALS),
        formats.family(rows[0]),
    )


def _grid(
    rows: Sequence[Row],
    split: str,
    places: Sequence[Any],
    value: Callable[[Row], Any],
    write: Callable[[Any], str] = formats.percent_estimate,
) -> tuple[tuple[str, ...], ...]:
    """A line a method, a cell a place."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        at = {row.split[split]: write(value(row)) for row in rows if row.method == method}
        lines.append((method, *(at.get(place, NOTHING) for place in places)))
    return tuple(lines)


def _needle_tables(rows: Sequence[Row]) -> list[Table]:
    """A table a method: a row a depth, a column a length."""
    lengths = sorted({row.split["context_tokens"] for row in rows if "context_tokens" in row.split})
    depths = sorted({row.split["depth"] for row in rows})
    metric = rows[0].metrics[0]
    tables = []
    for method in dict.fromkeys(row.method for row in rows):
        at = {
            (row.split["depth"], row.split.get("context_tokens")): row.values.get(metric)
            for row in rows
            if row.method == method
        }
        columns = ("depth", *(formats.tokens_label(length) for length in lengths)) if lengths else ("depth", "all")
        body = tuple(
            (str(depth), *(formats.percent_estimate(at.get((depth, length))) for length in lengths or [None]))
            for depth in depths
        )
        title = f"{formats.heading(rows[0])}, {method}: {formats.metric_label(metric)}, %"
        notes = ("Rows: where the needle stands, 0 at the beginning. Columns: tokens of a context.", _INTERVALS)
        tables.append(Table(title, columns, (Block(body),), notes, formats.family(rows[0])))
    return tables


def _personalisation_tables(rows: Sequence[Row]) -> list[Table]:
    """Table 1 of the paper, with the measured times."""
    metrics = rows[0].metrics
    columns = (
        "method", *(f"{formats.metric_label(name)}, %" for name in metrics), "TFLOPs a query", "M floats stored",
        "s to take in", "s a query",
    )  # fmt: skip
    own = tuple(
        (
            _name(row),
            *(formats.percent_estimate(row.values.get(name)) for name in metrics),
            formats.significant(row.costs["answering_flops"], 1e12),
            formats.significant(row.costs["stored_floats"], 1e6),
            formats.significant(row.measured["contextualizing_seconds_mean"]),
            formats.significant(row.measured["answering_seconds_mean"]),
        )
        for row in rows
    )
    known = published.data_set_of(formats.data_set(rows[0])) or ""
    theirs = published.PERSONALISATION.get(known, ())
    blocks = [Block(own, OWN_BLOCK if theirs else "")]
    notes = [_INTERVALS]
    if theirs:
        others = (NOTHING,) * (len(metrics) - 1)
        lines = [
            (item.label, f"{item.f1:.1f}", *others, f"{item.teraflops:.3f}", item.stored_floats, NOTHING, NOTHING)
            for item in theirs
        ]
        blocks.append(Block(tuple(lines), PUBLISHED_BLOCK.format(known)))
        notes.append("The paper's questions about these conversations aren't public; those asked here are others.")
    title = f"{formats.heading(rows[0])}: answers and their costs"
    return [Table(title, columns, tuple(blocks), tuple(notes), formats.family(rows[0])), *_differences(rows)]


def _plain_tables(rows: Sequence[Row]) -> list[Table]:
    """A row a method and split, a column a metric."""
    metrics = tuple(dict.fromkeys(name for row in rows for name in row.metrics))
    body = tuple(
        (_name(row), *(formats.percent_estimate(row.values.get(name)) for name in metrics), str(row.num_queries))
        for row in rows
    )
    columns = ("method", *(f"{formats.metric_label(name)}, %" for name in metrics), "queries")
    table = Table(formats.heading(rows[0]), columns, (Block(body),), (_INTERVALS,), formats.family(rows[0]))
    return [table, *_differences(rows)]


def _differences(rows: Sequence[Row]) -> list[Table]:
    compared = [row for row in rows if row.differences]
    if not compared:
        return []
    metric = rows[0].metrics[0]
    body = tuple((_name(row), formats.percent_difference(row.differences.get(metric))) for row in compared)
    return [_difference_table(rows, ("method", "difference"), body, metric)]


def _category_tables(rows: Sequence[Row], categories: Sequence[CategoryRow]) -> list[Table]:
    """The main metric by category: a row a method and split, a column a category."""
    places = {(row.task, row.method, str(row.split)): row for row in rows}
    own = [item for item in categories if (item.task, item.method, str(item.split)) in places]
    if not own:
        return []
    names = tuple(sorted({item.category for item in own}))
    metric = rows[0].metrics[0]
    lines: dict[str, dict[str, str]] = {}
    for item in own:
        name = _name(places[item.task, item.method, str(item.split)])
        lines.setdefault(name, {})[item.category] = formats.percent_estimate(item.values.get(metric))
    body = tuple((name, *(cells.get(category, NOTHING) for category in names)) for name, cells in lines.items())
    title = f"{formats.heading(rows[0])}: {formats.metric_label(metric)} by category of question, %"
    return [Table(title, ("method", *names), (Block(body),), (_INTERVALS,), formats.family(rows[0]))]


def _average_tables(summary: Summary) -> list[Table]:
    """MetaICL: averages over tasks by number of demonstrations, and each task at the largest."""
    if not summary.averages:
        return []
    shots = sorted({average.shots for average in summary.averages})
    blocks = []
    for group in GROUPS:
        own = [average for average in summary.averages if average.group == group]
        lines = []
        for method in dict.fromkeys(average.method for average in own):
            at = {a.shots: formats.percent_spread(a.mean, a.draws) for a in own if a.method == method}
            lines.append((method, *(at.get(number, NOTHING) for number in shots)))
        if own:
            counts = sorted({len(average.tasks) for average in own})
            blocks.append(Block(tuple(lines), f"{_GROUP_TITLES[group]} ({' or '.join(map(str, counts))})"))
    notes = ["Columns: demonstrations. ± the standard deviation over draws of the average.", published.METAICL_NOTE]
    if any(average.num_left_out for average in summary.averages):
        notes.append("Tasks that not all methods have answered at a number of demonstrations are left out there.")
    columns = ("method", *(f"K = {number}" for number in shots))
    first = Table("MetaICL: main metric, mean over tasks, %", columns, tuple(blocks), tuple(notes), "MetaICL")
    rows = [row for row in summary.rows if formats.is_averaged(row) and row.split["shots"] == shots[-1]]
    methods = tuple(dict.fromkeys(row.method for row in rows))
    tasks = []
    for title, classification in (("classification tasks", True), ("other tasks", False)):
        own = [row for row in rows if row.classification is classification]
        lines = [
            (formats.data_set(others[0]), *(_at_task(others, method) for method in methods))
            for name in dict.fromkeys(row.task for row in own)
            if (others := [row for row in own if row.task == name])
        ]
        if lines:
            tasks.append(Block(tuple(lines), title))
    notes = ("± the standard deviation over draws of the demonstrations.",)
    title = f"MetaICL: every task at K = {shots[-1]}, main metric, %"
    return [first, Table(title, ("task", *methods), tuple(tasks), notes, "MetaICL")]


def _at_task(rows: Sequence[Row], method: str) -> str:
    row = next((row for row in rows if row.method == method), None)
    if row is None or row.metrics[0] not in row.values:
        return NOTHING
    metric = row.metrics[0]
    return formats.percent_spread(row.values[metric].mean, row.draws.get(metric))


def _name(row: Row) -> str:
    """The method, and its split where the table has no column for that."""
    label = formats.split_label(row.split)
    return f"{row.method}, {label}" if label else row.method
