"""Interference from answers made by hand."""

from __future__ import annotations

import json

import pytest

from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.interference import (
    JudgedAnswer,
    judged_answers,
    measure_interference,
    method_interference,
)
from generative_adapter.evaluation.metrics import bootstrap_mean
from generative_adapter.evaluation.results import QueryResult, SampleResult

BEFORE = [("sky?", "blue", 1.0), ("grass?", "red", 0.0), ("snow?", "white snow", 1.0), ("coal?", "grey", 0.0)]
AFTER = [("snow?", "black", 0.0), ("sky?", " blue\n", 1.0), ("coal?", "black", 1.0), ("grass?", "pink", 0.5)]


def test_counts_by_hand() -> None:
    found = measure_interference(BEFORE, AFTER)
    assert (found.before, found.after, found.unchanged) == (0.5, 0.625, 0.25)
    assert (found.num_right_before, found.num_became_wrong, found.num_became_right) == (2, 1, 1)
    assert (found.num_answers, found.num_contexts, found.right_from) == (4, 4, 1.0)
    assert found.difference == bootstrap_mean([-1.0, 0.0, 1.0, 0.5], ["a", "b", "c", "d"])
    lower = measure_interference(BEFORE, AFTER, right_from=0.5)
    assert (lower.num_became_wrong, lower.num_became_right) == (1, 2)
    assert json.loads(json.dumps(found.to_dict()))["difference"]["mean"] == 0.125


def test_the_same_answers_do_not_interfere() -> None:
    found = measure_interference(BEFORE, BEFORE)
    assert found.unchanged == 1 and found.num_became_wrong == found.num_became_right == 0
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0, 0, 0)


def test_intervals_are_by_context() -> None:
    """In one context all becomes wrong, in three nothing: drawn by context, a resample is 0, 1/4 ... 1 of it."""
    before = [JudgedAnswer(question, "right", 1.0) for question in "abcdefgh"]
    after = [
        JudgedAnswer(question, answer, value, f"context {number}")
        for number, (answer, value) in enumerate([("wrong", 0.0)] + 3 * [("right", 1.0)])
        for question in "abcdefgh"
    ]
    found = measure_interference(before, after, seed=4)
    assert (found.num_answers, found.num_contexts, found.num_became_wrong) == (32, 4, 8)
    assert found.difference.mean == -0.25 and found.unchanged == 0.75
    assert found.difference.low in (-1, -0.75) and found.difference.high == 0
    alone = measure_interference(before, after[:8])
    assert (alone.difference.low, alone.difference.high) == (None, None)


def test_partners_are_of_the_same_context_where_there_are_several() -> None:
    before = [JudgedAnswer("q", "one", 1.0, "A"), JudgedAnswer("q", "two", 0.0, "B")]
    after = [JudgedAnswer("q", "two", 0.0, "B"), JudgedAnswer("q", "one", 1.0, "A")]
    assert measure_interference(before, after).unchanged == 1
    with pytest.raises(DataError, match="2 different answers in other contexts"):
        measure_interference(before, [JudgedAnswer("q", "one", 1.0, "C")])
    with pytest.raises(DataError, match="'q' was answered 'one' and 'two' before"):
        measure_interference([("q", "one", 1.0), ("q", "two", 1.0)], after)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(DataError, match="'moon\\?' has no answer before"):
        measure_interference(BEFORE, [("moon?", "white", 1.0)])
    with pytest.raises(DataError, match="got none"):
        measure_interference(BEFORE, [])
    with pytest.raises(ConfigError, match="right_from"):
        measure_interference(BEFORE, AFTER, right_from=0)


def line(method: str, context: str, answers, wording: str = "own", control: str = "unrelated question") -> SampleResult:
    queries = tuple(
        QueryResult(f"{i}", question, ("x",), answer, {"f1": value / 2, "recall": value})
        for i, (question, answer, value) in enumerate(answers)
    )
    metadata = {"control": control} if control else {}
    metrics = ("f1", "recall")
    return SampleResult("k", "task", "test", method, wording, context, context, metadata, metrics, {}, {}, queries)


def test_from_results() -> None:
    results = [
        line("no-adapter", "A", BEFORE),
        line("no-adapter", "B", BEFORE),
        line("closed-book", "A", [("sky?", "never", 0.0)]),
        line("generative-adapter", "A", AFTER),
        line("generative-adapter", "B", BEFORE),
        line("generative-adapter", "A", [("what is in the text?", "never", 0.0)], control="own document"),
        line("generative-adapter", "A", [("plain task", "never", 0.0)], control=""),
    ]
    found = method_interference(results, "generative-adapter")
    assert (found.num_answers, found.num_contexts) == (8, 2)
    assert (found.before, found.after, found.unchanged) == (0.5, 0.5625, 0.625)
    assert {found.difference.low, found.difference.high} == {0, 0.125}  # of B alone, of A alone
    assert method_interference(results, "generative-adapter", "f1").after == 0.28125
    assert [item.context for item in judged_answers(results, "generative-adapter")] == 4 * ["A"] + 4 * ["B"]
    assert measure_interference(judged_answers(results, "no-adapter"), AFTER).num_answers == 4
    with pytest.raises(DataError, match="no answer of sft-full"):
        method_interference(results, "sft-full")
    with pytest.raises(DataError, match="no metric 'accuracy', only f1, recall"):
        judged_answers(results, "no-adapter", "accuracy")
    with pytest.raises(DataError, match="same wording"):
        method_interference([line("closed-book", "A", BEFORE, "chat"), line("sft-full", "A", AFTER)], "sft-full")
