"""Tables of what contexts do to everything else: the controls' answers, and what `forgetting.json` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from generative_adapter.evaluation.metrics import Estimate
from generative_adapter.evaluation.report import formats
from generative_adapter.evaluation.report.formats import NOTHING
from generative_adapter.evaluation.report.layout import Block, Table
from generative_adapter.evaluation.result_rows import Row
from generative_adapter.evaluation.run_folder import RunFolder

TOPIC = "Forgetting"
OTHER = "other document"
_INTERVALS = "In brackets: 95 % bootstrap intervals over contexts."
_INTERFERENCE_COLUMNS = (
    "method", "answers unchanged, %", "recall before, %", "recall after, %", "after less before, points",
    "right → wrong", "wrong → right", "answers",
)  # fmt: skip
_TEXT_COLUMNS = ("method", "perplexity before", "ratio after / before", "highest ratio", "contexts", "tokens")


def control_table(rows: Sequence[Row]) -> Table:
    """A row a method, a column a control, a block a length; last what another document does to answers.

    Args:
        rows: of one data set, each with a control in its split.
    """
    metric = rows[0].metrics[0]
    controls = tuple(dict.fromkeys(row.split["control"] for row in rows))
    references = dict.fromkeys(row.reference for row in rows if row.split["control"] == OTHER and row.reference)
    blocks = []
    for length in dict.fromkeys(row.split.get("context_tokens") for row in rows):
        own = [row for row in rows if row.split.get("context_tokens") == length]
        lines = []
        for method in dict.fromkeys(row.method for row in own):
            at = {row.split["control"]: row for row in own if row.method == method}
            cells = [formats.percent_estimate(at[name].values.get(metric)) if name in at else NOTHING
                     for name in controls]  # fmt: skip
            if references:
                cells.append(formats.percent_difference(at[OTHER].differences.get(metric)) if OTHER in at else NOTHING)
            lines.append((method, *cells))
        blocks.append(Block(tuple(lines), "" if length is None else f"{formats.tokens_label(length)} tokens"))
    last = (f"{OTHER} less {' or '.join(references)}, points",) if references else ()
    title = f"{formats.heading(rows[0])}: {formats.metric_label(metric)} by control, %"
    return Table(title, ("method", *controls, *last), tuple(blocks), (_INTERVALS,), TOPIC)


def forgetting_tables(runs: Sequence[RunFolder]) -> list[Table]:
    """Interference, then held-out text, of every folder that has a `forgetting.json`."""
    told = [run for run in runs if run.forgetting]
    tables = []
    for run in told:
        name = f", {run.name}" if len(told) > 1 else ""
        if found := run.forgetting.get("interference"):
            notes = (
                "Unrelated questions, before: without a context, in the same wording; after: with one taken in. Right: "
                "a recall of 100 %.",
                _INTERVALS,
            )
            blocks = _blocks(found, _interference_cells)
            tables.append(Table(f"Unrelated questions{name}", _INTERFERENCE_COLUMNS, blocks, notes, TOPIC))
        if found := run.forgetting.get("general_ability"):
            notes = ("Text that has nothing to do with the contexts; a ratio of 1: nothing is lost.", _INTERVALS)
            tables.append(Table(f"Held-out text{name}", _TEXT_COLUMNS, _blocks(found, _text_cells), notes, TOPIC))
    return tables


def _blocks(found: Mapping[str, Mapping[str, Any]], cells: Any) -> tuple[Block, ...]:
    """A block a length, a row a method."""
    lengths = sorted({int(length) for own in found.values() for length in own})
    return tuple(
        Block(
            tuple((method, *cells(own[str(length)])) for method, own in found.items() if str(length) in own),
            f"{formats.tokens_label(length)} tokens",
        )
        for length in lengths
    )


def _interference_cells(values: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(formats.percent(values[name]) for name in ("unchanged", "before", "after")),
        formats.percent_difference(Estimate(**values["difference"])),
        *(f"{values[name]:,}" for name in ("num_became_wrong", "num_became_right", "num_answers")),
    )


def _text_cells(values: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = Estimate(**values["ratio"])
    shown = f"{ratio.mean:.3f}"
    if ratio.low is not None and ratio.high is not None:
        shown = f"{shown} [{ratio.low:.3f}, {ratio.high:.3f}]"
    counts = (f"{values[name]:,}" for name in ("num_contexts", "num_tokens"))
    return (f"{values['plain_perplexity']:.2f}", shown, f"{values['max_ratio']:.3f}", *counts)
