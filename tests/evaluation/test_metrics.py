"""Metrics against values worked out by hand, as SQuAD v1.1's published evaluation gives them."""

from __future__ import annotations

import random
import statistics

import pytest

from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.metrics import (
    METRICS,
    bootstrap_mean,
    exact_match,
    metrics_named,
    normalize,
    option_accuracy,
    token_f1,
    token_recall,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick,\tbrown\nFox!", "quick brown fox"),
        ("U.S.A.", "usa"),
        ("twenty-one", "twentyone"),
        ("a theatre than another", "theatre than another"),  # articles are whole words
        ("the a an", ""),
        ("a.n.", ""),  # punctuation goes first: "an" is an article then
        ("...", ""),
        ("", ""),
        ("ÉTÉ «à» Graz", "été «à» graz"),  # only ASCII punctuation is removed
        ("don’t", "don’t"),  # noqa: RUF001
        ("İ", "i̇"),  # lower() of the dotted capital I is two code points
        ("$5.00", "500"),
        ("日本 の 首都", "日本 の 首都"),
        ("non breaking\u00a0space", "non breaking space"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "match", "f1", "recall"),
    [
        # equal after normalisation
        ("The Denver Broncos.", ["denver broncos"], 1, 1, 1),
        # 1 of 3 tokens given, 1 of 1 expected: P = 1/3, R = 1, F1 = 2/4
        ("Denver Broncos won", ["Denver"], 0, 1 / 2, 1),
        # 1 of 1 given, 1 of 3 expected: P = 1, R = 1/3, F1 = 2/4
        ("Denver", ["Denver Broncos team"], 0, 1 / 2, 1 / 3),
        # P = 2/4, R = 2/3, F1 = 4/7
        ("blue and red paint", ["red or blue"], 0, 4 / 7, 2 / 3),
        # order doesn't matter to F1
        ("Broncos Denver", ["Denver Broncos"], 0, 1, 1),
        # nothing in common
        ("Paris", ["London"], 0, 0, 0),
        # repeated: min(3, 1) = 1 common, P = 1/3, R = 1/2, F1 = 2/5
        ("no no no", ["no way"], 0, 2 / 5, 1 / 2),
        # repeated on both sides: min(2, 3) = 2 common, P = 2/2, R = 2/3, F1 = 4/5
        ("ha ha", ["ha ha ha"], 0, 4 / 5, 2 / 3),
        # nothing was answered
        ("", ["Denver"], 0, 0, 0),
        # articles only equal nothing at all: a match, but no common token (version 2 of SQuAD would say 1)
        ("the", ["a"], 1, 0, 0),
        ("", ["..."], 1, 0, 0),
        # a long answer: P = 1/10, R = 1, F1 = 2/11
        ("one two three four five six seven eight nine Denver", ["Denver"], 0, 2 / 11, 1),
        # punctuation inside a token joins it: "1984-85" is "198485"
        ("1984 85", ["1984-85"], 0, 0, 0),
        # accents count
        ("Beyonce", ["Beyoncé"], 0, 0, 0),
        ("BEYONCÉ", ["beyoncé"], 1, 1, 1),
        # the best of several: against the first F1 = 2/3 (P = 1/2, R = 1), against the second 1
        ("Central Asia", ["Asia", "central asia", "the arid plains of Central Asia"], 1, 1, 1),
        # the best may differ: F1 2/3 and recall 1 from "Asia"; "of Central Asia Minor" F1 2*2/6, recall 2/4
        ("Central Asia", ["of Central Asia Minor", "Asia"], 0, 2 / 3, 1),
    ],
)
def test_against_values_by_hand(answer: str, references: list[str], match: float, f1: float, recall: float) -> None:
    assert exact_match(answer, references) == match
    assert token_f1(answer, references) == pytest.approx(f1, abs=1e-12)
    assert token_recall(answer, references) == pytest.approx(recall, abs=1e-12)


def test_option_accuracy_is_by_letter() -> None:
    assert option_accuracy("non-hate", ["non-hate"]) == 1
    assert option_accuracy("Non-hate", ["non-hate"]) == 0
    assert option_accuracy("not_entailment", ["entailment"]) == 0
    assert option_accuracy("b", ["a", "b"]) == 1


def test_a_metric_needs_a_reference_and_a_known_name() -> None:
    for metric in METRICS.values():
        with pytest.raises(DataError, match="without a reference"):
            metric("x", [])
    assert list(metrics_named(["recall", "f1"])) == ["recall", "f1"]
    with pytest.raises(ConfigError, match="unknown metric 'F1'; expected one of f1, exact_match, recall, accuracy"):
        metrics_named(["F1"])


def test_bootstrap_repeats_and_brackets_the_mean() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 0.0, 1.0]
    clusters = ["a", "a", "b", "b", "c", "c"]
    estimate = bootstrap_mean(values, clusters, seed=3)
    assert estimate == bootstrap_mean(values, clusters, seed=3)
    assert estimate != bootstrap_mean(values, clusters, seed=4, num_resamples=50)
    assert estimate.mean == pytest.approx(3.5 / 6)
    assert (estimate.num_values, estimate.num_clusters) == (6, 3)
    # cluster means are 1/2, 3/4 and 1/2: no resample leaves their range
    assert estimate.low is not None and estimate.high is not None
    assert 0.5 <= estimate.low <= estimate.mean <= estimate.high <= 0.75


def test_the_interval_is_that_of_the_drawn_clusters() -> None:
    """Two clusters of 1 and 3 values: resamples are aa, ab, ba, bb with means 0, 3/4, 3/4, 1."""
    values, clusters = [0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"]
    # each pair has a quarter: quantiles below 1/4 are 0, between 1/4 and 3/4 they are 3/4, above that 1
    wide = bootstrap_mean(values, clusters, confidence=0.8)
    assert (wide.low, wide.high) == (0.0, 1.0)
    narrow = bootstrap_mean(values, clusters, confidence=0.3)
    assert (narrow.low, narrow.high) == (0.75, 0.75)


def test_questions_of_one_context_widen_the_interval() -> None:
    """Values that agree within a context carry a context's worth of information, whatever their number."""
    random_values = random.Random(0)
    luck = [random_values.random() for _ in range(40)]
    values = [value for value in luck for _ in range(10)]
    by_context = bootstrap_mean(values, [index for index in range(40) for _ in range(10)])
    alone = bootstrap_mean(values, list(range(400)))
    few = bootstrap_mean(luck, list(range(40)))
    width = [item.high - item.low for item in (by_context, alone, few)]  # type: ignore[operator]
    assert width[0] == pytest.approx(width[2]) and width[0] / width[1] == pytest.approx(10**0.5, rel=0.1)
    # and by the normal approximation: 2 * 1.96 standard errors of the mean
    assert width[2] == pytest.approx(2 * 1.96 * statistics.pstdev(luck) / 40**0.5, rel=0.1)


def test_one_cluster_has_no_interval() -> None:
    estimate = bootstrap_mean([1.0, 0.0], ["a", "a"])
    assert (estimate.mean, estimate.low, estimate.high, estimate.num_clusters) == (0.5, None, None, 1)


def test_bootstrap_refuses() -> None:
    with pytest.raises(DataError, match="got 0 and 0"):
        bootstrap_mean([], [])
    with pytest.raises(DataError, match="got 2 and 1"):
        bootstrap_mean([1.0, 0.0], ["a"])
    with pytest.raises(ConfigError, match="confidence must lie between 0 and 1, got 95"):
        bootstrap_mean([1.0], ["a"], confidence=95)
    with pytest.raises(ConfigError, match="num_resamples must be positive, got 0"):
        bootstrap_mean([1.0], ["a"], num_resamples=0)
