"""Averages over MetaICL's tasks, classification and the others apart (section 4.2 and figure 4 of the paper).

Every task counts the same, whatever its number of test rows. Methods are compared on the same tasks: those that all of
them have at a number of demonstrations. No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from generative_adapter.evaluation.result_rows import Average, DrawSpread, Row

GROUPS = ("classification", "other", "all")


def average_over_tasks(rows: Sequence[Row]) -> list[Average]:
    """Means of task means by group, number of demonstrations and method, of rows that say whether they classify.

    A task's mean is that of its main metric over draws. A draw's average is over the same tasks, so that its spread
    tells how much the draw of demonstrations matters.
    """
    known = [row for row in rows if row.classification is not None and "shots" in row.split and row.values]
    methods = list(dict.fromkeys(row.method for row in known))
    averages = []
    for group in GROUPS:
        own = [row for row in known if group == "all" or row.classification == (group == "classification")]
        for shots in sorted({row.split["shots"] for row in own}):
            by_method = {
                method: {row.task: row for row in own if (row.method, row.split["shots"]) == (method, shots)}
                for method in methods
            }
            by_method = {method: tasks for method, tasks in by_method.items() if tasks}
            common = set.intersection(*(set(tasks) for tasks in by_method.values()))
            for method, tasks in by_method.items():
                chosen = [row for task, row in tasks.items() if task in common]
                if chosen:
                    averages.append(_average(group, method, shots, chosen, len(tasks) - len(chosen)))
    return averages


def _average(group: str, method: str, shots: int, rows: Sequence[Row], num_left_out: int) -> Average:
    spreads = [row.draws.get(row.metrics[0]) for row in rows]
    means = [
        row.values[row.metrics[0]].mean if spread is None else spread.mean
        for row, spread in zip(rows, spreads, strict=True)
    ]
    draws = [set(spread.by_draw) if spread else set() for spread in spreads]
    common = sorted(set.intersection(*draws), key=lambda draw: (len(draw), draw))
    by_draw = {
        draw: statistics.fmean(spread.by_draw[draw] for spread in spreads if spread is not None) for draw in common
    }
    return Average(
        group=group,
        method=method,
        shots=shots,
        tasks=tuple(row.task for row in rows),
        num_left_out=num_left_out,
        mean=statistics.fmean(means),
        draws=DrawSpread.of(by_draw) if by_draw else None,
    )
