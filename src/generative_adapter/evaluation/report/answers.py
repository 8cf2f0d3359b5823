"""A few right and wrong answers of every method, to read beside the numbers.

Which ones follows from the seed and the questions alone, so that methods are shown on the same questions where they
can be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from generative_adapter.evaluation.results import QueryResult, SampleResult

RIGHT_FROM = 0.5  # of the main metric


@dataclass(frozen=True)
class ShownAnswer:
    """One answer.

    Attributes:
        family: first part of the task's name.
        method: that gave it.
        sample: id of the sample.
        query: with question, references and answer.
        value: the main metric, in 0..1.
    """

    family: str
    method: str
    sample: str
    query: QueryResult
    value: float

    @property
    def right(self) -> bool:
        """Whether the main metric is at least one half."""
        return self.value >= RIGHT_FROM


def shown_answers(results: Iterable[SampleResult], *, num_of_each: int = 3, seed: int = 0) -> list[ShownAnswer]:
    """Up to `num_of_each` right and as many wrong answers of every method in every family of tasks."""
    groups: dict[tuple[str, str, bool], list[ShownAnswer]] = {}
    for result in results:
        for query in result.queries:
            if result.metrics[0] in query.values:
                family = result.task.split("/", 1)[0]
                item = ShownAnswer(family, result.method, result.sample, query, query.values[result.metrics[0]])
                groups.setdefault((family, result.method, item.right), []).append(item)
    chosen: list[ShownAnswer] = []
    for family, method in dict.fromkeys((family, method) for family, method, _ in groups):
        for right in (True, False):
            chosen += sorted(groups.get((family, method, right), ()), key=lambda item: _rank(item, seed))[:num_of_each]
    return chosen


def _rank(item: ShownAnswer, seed: int) -> str:
    name = f"{seed}/{item.sample}/{item.query.id}"
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
