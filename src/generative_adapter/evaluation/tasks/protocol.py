"""What a task gives: samples of one context with its queries, and how their answers are judged.

A task is a data set put in the form that every method can take (`methods.protocol`). A new one is a new file that
yields `TaskSample`s. Leaves out: running methods on them, and means over samples (`evaluation.metrics`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from generative_adapter.config import require
from generative_adapter.errors import DataError
from generative_adapter.evaluation.metrics import metrics_named
from generative_adapter.methods.protocol import Answer, Context, Query, Wording


@dataclass(frozen=True)
class TaskQuery:
    """A query with the answers that are right.

    Attributes:
        id: of the query, unique and stable within its sample.
        query: what a method is asked.
        references: right answers, at least one; with options, those that are right.
        metadata: what results may be split by, such as a category; plain JSON values.
    """

    id: str
    query: Query
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.references:
            raise DataError(f"query {self.id!r} has no reference answer; at least one is expected")


@dataclass(frozen=True)
class TaskSample:
    """One context with everything that is asked about it: the unit of running, of keeping results and of resampling.

    Attributes:
        id: readable, unique within a task; the same for the same settings.
        context: what a method takes in.
        queries: asked about it, each on its own.
        wordings: candidates that full-context and closed-book prompting may choose from on training data; the paper's
            own first.
        max_new_tokens: limit of a generated answer.
        metrics: names in `evaluation.metrics.METRICS` of what counts, the main one first.
        metadata: of the sample, such as the group size or the draw; plain JSON values.
    """

    id: str
    context: Context
    queries: tuple[TaskQuery, ...]
    wordings: tuple[Wording, ...]
    max_new_tokens: int
    metrics: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(len(self.queries) > 0, f"sample {self.id}: there is no query")
        require(len({query.id for query in self.queries}) == len(self.queries), f"sample {self.id}: query ids repeat")
        require(len(self.wordings) > 0, f"sample {self.id}: there is no wording")
        require(self.max_new_tokens > 0, f"sample {self.id}: max_new_tokens must be positive")
        require(len(self.metrics) > 0, f"sample {self.id}: there is no metric")
        metrics_named(self.metrics)

    @property
    def context_id(self) -> str:
        """Hash of the context's text: equal texts, equal ids. What results are clustered by."""
        return _digest(self.context.text)

    @property
    def content_id(self) -> str:
        """Hash of context, queries and references: a kept result is this sample's while it stays the same."""
        asked = [[item.id, item.query.question, item.query.options, item.references] for item in self.queries]
        return _digest(json.dumps([self.context.text, asked, self.metrics], ensure_ascii=False))


class Task(Protocol):
    """A data set as samples. The same files and settings give the same samples in the same order."""

    @property
    def name(self) -> str:
        """Name in results."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """What was left out of the data, by reason, in questions unless the reason names something else."""
        ...

    def samples(self) -> Iterator[TaskSample]:
        """The samples, at least one.

        Raises:
            DataError: the settings leave nothing to ask.
        """
        ...


@dataclass(frozen=True)
class Score:
    """The judgement of one answer.

    Attributes:
        query_id: of the query within the sample.
        context_id: of the sample; the cluster for confidence intervals.
        values: by metric name, in 0..1.
        metadata: of the sample and the query together.
    """

    query_id: str
    context_id: str
    values: Mapping[str, float]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def score(sample: TaskSample, answers: Sequence[Answer]) -> list[Score]:
    """The judgement of a sample's answers, by nothing but the sample and the answers' texts.

    Args:
        sample: what was asked.
        answers: one for each query, in order.

    Raises:
        DataError: there are more or fewer answers than queries.
    """
    if len(answers) != len(sample.queries):
        raise DataError(f"sample {sample.id} has {len(sample.queries)} queries, got {len(answers)} answers")
    metrics = metrics_named(sample.metrics)
    context_id = sample.context_id
    return [
        Score(
            item.id,
            context_id,
            {name: metric(answer.text, item.references) for name, metric in metrics.items()},
            {**sample.metadata, **item.metadata},
        )
        for item, answer in zip(sample.queries, answers, strict=True)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
