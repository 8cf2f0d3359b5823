"""How an answer is judged, and how sure a mean of judgements is.

Answers are normalised and compared as SQuAD v1.1's published evaluation does it, so that F1 and exact match can stand
beside published numbers. Token recall stands beside F1, since short answers flatter F1. All values lie in 0..1, and of
several references the best counts. Leaves out: which metrics count for which task (`tasks`), and anything that needs
torch.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy

from generative_adapter.errors import ConfigError, DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBERS_AT_ONCE = 100_000  # of resamples, so that many clusters don't fill the memory
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """A text as SQuAD v1.1 compares it: lower case, no ASCII punctuation, no articles, single spaces.

    The steps run in this order, so "a-b" becomes "ab", "U.S.A." becomes "usa", and other scripts' punctuation stays.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, references: Iterable[str]) -> float:
    """1 where the normalised answer equals a normalised reference, else 0."""
    return _best(lambda reference: float(normalize(answer) == normalize(reference)), references)


def token_f1(answer: str, references: Iterable[str]) -> float:
    """2 P R / (P + R) of the normalised tokens, the best over the references.

    P is the share of the answer's tokens that are in the reference, R the share of the reference's that are in the
    answer; a token counts as often as both have it. Without a common token it is 0, even where both are empty, as in
    version 1.1 (version 2 differs).
    """
    return _best(lambda reference: _f1(*_overlap(answer, reference)), references)


def token_recall(answer: str, references: Iterable[str]) -> float:
    """The share of a reference's normalised tokens that are in the answer, the best over the references.

    A long answer isn't punished. 0 where the reference has no token left after normalisation.
    """
    return _best(lambda reference: _recall(*_overlap(answer, reference)), references)


def option_accuracy(chosen: str, references: Iterable[str]) -> float:
    """1 where the chosen option is a right one, letter for letter, else 0."""
    return _best(lambda reference: float(chosen == reference), references)


METRICS: dict[str, Callable[[str, Iterable[str]], float]] = {
    "f1": token_f1,
    "exact_match": exact_match,
    "recall": token_recall,
    "accuracy": option_accuracy,
}


def metrics_named(names: Iterable[str]) -> dict[str, Callable[[str, Iterable[str]], float]]:
    """The metrics of these names.

    Raises:
        ConfigError: there is none of a name; the message lists them.
    """
    names = tuple(names)
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"unknown metric {unknown[0]!r}; expected one of {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap confidence interval.

    Attributes:
        mean: over all values.
        low: lower end of the interval; None where there is but one cluster, which says nothing about others.
        high: upper end.
        num_values: how many values there are.
        num_clusters: how many clusters they come from.
    """

    mean: float
    low: float | None
    high: float | None
    num_values: int
    num_clusters: int


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of values and its percentile bootstrap interval, resampled by cluster.

    Questions about one context share its luck, so they are no independent draws: whole clusters are drawn with
    replacement, as many as there are, and each resample's mean is the sum of its values over their number. With each
    value a cluster of its own this is the plain bootstrap. For two methods on the same questions, give the differences
    of their values. The same arguments give the same interval.

    Args:
        values: one a question.
        clusters: which cluster each value is of, such as its context's id.
        confidence: share of the resampled means inside the interval.
        num_resamples: how many are drawn.
        seed: of the draws.

    Raises:
        DataError: there is no value, or not one cluster a value.
        ConfigError: `confidence` or `num_resamples` is out of range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ConfigError(f"num_resamples must be positive, got {num_resamples}")
    if not values or len(values) != len(clusters):
        raise DataError(f"a mean needs values and a cluster for each, got {len(values)} and {len(clusters)}")
    places: dict[Hashable, int] = {}
    place_of = [places.setdefault(cluster, len(places)) for cluster in clusters]
    sums = numpy.bincount(place_of, weights=values)
    counts = numpy.bincount(place_of)
    mean = float(sums.sum() / counts.sum())
    if len(places) == 1:
        return Estimate(mean, None, None, len(values), 1)
    random = numpy.random.default_rng(seed)
    means = numpy.empty(num_resamples)
    at_once = max(1, _NUMBERS_AT_ONCE // len(places))
    for start in range(0, num_resamples, at_once):
        drawn = random.integers(len(places), size=(min(at_once, num_resamples - start), len(places)))
        means[start : start + at_once] = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = numpy.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high), len(values), len(places))


def _best(judge: Callable[[str], float], references: Iterable[str]) -> float:
    judged = [judge(reference) for reference in references]
    if not judged:
        raise DataError("an answer can't be judged without a reference; at least one is expected")
    return max(judged)


def _overlap(answer: str, reference: str) -> tuple[int, int, int]:
    """Tokens that both have, tokens of the answer, tokens of the reference."""
    given, expected = normalize(answer).split(), normalize(reference).split()
    return sum((Counter(given) & Counter(expected)).values()), len(given), len(expected)


def _f1(common: int, num_given: int, num_expected: int) -> float:
    return 2 * common / (num_given + num_expected) if common else 0.0


def _recall(common: int, num_given: int, num_expected: int) -> float:
    return common / num_expected if common else 0.0
