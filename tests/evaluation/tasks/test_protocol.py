"""Samples and the judgement of their answers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample, score
from generative_adapter.methods.protocol import Answer, Context, Query, Wording

QUERIES = (
    TaskQuery("1", Query("Who?"), ("the Duke", "Duke of Graz"), {"category": "person"}),
    TaskQuery("2", Query("When?"), ("1379",)),
)
SAMPLE = TaskSample(
    "a/1", Context("A text."), QUERIES, (Wording("w", "{question}", "{context} {question}"),), 8, ("f1", "exact_match"),
    {"context_tokens": 512},
)  # fmt: skip


def test_answers_are_judged_by_the_sample_alone() -> None:
    first, second = score(SAMPLE, [Answer("A duke!", seconds=3.0), Answer("in 1379")])
    assert first.values == {"f1": 1.0, "exact_match": 1.0}
    # "in 1379" against "1379": P = 1/2, R = 1
    assert second.values == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}
    assert (first.query_id, first.context_id) == ("1", SAMPLE.context_id)
    assert first.metadata == {"context_tokens": 512, "category": "person"}
    assert second.metadata == {"context_tokens": 512}


def test_every_query_needs_an_answer() -> None:
    with pytest.raises(DataError, match="sample a/1 has 2 queries, got 1 answers"):
        score(SAMPLE, [Answer("x")])


def test_ids_follow_content() -> None:
    assert SAMPLE.context_id == replace(SAMPLE, queries=QUERIES[:1], id="b").context_id
    assert SAMPLE.context_id != replace(SAMPLE, context=Context("A text")).context_id
    changed = [
        replace(SAMPLE, queries=QUERIES[:1]),
        replace(SAMPLE, queries=(QUERIES[0], replace(QUERIES[1], references=("1380",)))),
        replace(SAMPLE, context=Context("A text")),
        replace(SAMPLE, metrics=("f1",)),
    ]
    assert len({SAMPLE.content_id, *(sample.content_id for sample in changed)}) == 5
    assert SAMPLE.content_id == replace(SAMPLE, metadata={}).content_id
    # `printf 'A text.' | sha256sum`: kept results are found again by a later version
    assert SAMPLE.context_id == "3b6444e203f18aca"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": ()}, "there is no query"),
        ({"queries": (QUERIES[0], QUERIES[0])}, "query ids repeat"),
        ({"wordings": ()}, "there is no wording"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"metrics": ()}, "there is no metric"),
        ({"metrics": ("bleu",)}, "unknown metric 'bleu'"),
    ],
)
def test_samples_are_checked(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SAMPLE, **change)


def test_a_query_needs_a_reference() -> None:
    with pytest.raises(DataError, match="query 'x' has no reference answer"):
        TaskQuery("x", Query("?"), ())


def test_metrics_and_tasks_are_light() -> None:
    names = ["metrics", "tasks.protocol", "tasks.document_qa", "tasks.metaicl", "tasks.personalisation"]
    modules = ", ".join(f"generative_adapter.evaluation.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit(', '.join({{'torch', 'transformers'}} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
