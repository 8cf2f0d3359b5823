"""Interference: what a context's state does to answers that have nothing to do with the context.

The same unrelated questions (`tasks.controls`) are answered under a method and by the model before it, without a
context and in the same wording: `no-adapter` for the generative adapter, `closed-book` for methods that take the task's
wording. Leaves out: asking, and how well text is predicted (`general_ability`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from generative_adapter.config import require
from generative_adapter.errors import DataError
from generative_adapter.evaluation.metrics import Estimate, bootstrap_mean
from generative_adapter.evaluation.results import SampleResult
from generative_adapter.evaluation.tasks.controls import CONTROL, LABELS

METRIC = "recall"  # a right answer in a whole sentence is right
BEFORE = {"generative-adapter": "no-adapter"}
"""The method that answers as another one does, but without a context; for all others `closed-book`."""


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer with its judgement.

    Attributes:
        question: what was asked; answers before and after are paired by it.
        answer: to it.
        value: of a metric, in 0..1.
        context: id of the context it was given under; empty: of none, or each answer is of its own.
    """

    question: str
    answer: str
    value: float
    context: str = ""


@dataclass(frozen=True)
class Interference:
    """How answers changed; shares and means are over all answers under the method.

    Attributes:
        unchanged: share of answers that are the same, letter for letter but for white space around them.
        before: mean value without the context.
        after: mean value under the method.
        difference: after less before, with its interval.
        num_right_before: answers whose value reached `right_from` without the context.
        num_became_wrong: of those, how many did not under the method.
        num_became_right: answers that did under the method only.
        right_from: value from which an answer is right.
        num_answers: pairs of answers.
        num_contexts: different contexts; the interval's clusters, or the answers where there is no context.
    """

    unchanged: float
    before: float
    after: float
    difference: Estimate
    num_right_before: int
    num_became_wrong: int
    num_became_right: int
    right_from: float
    num_answers: int
    num_contexts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def judged_answers(
    results: Iterable[SampleResult], method: str, metric: str = METRIC, control: str = "unrelated"
) -> list[JudgedAnswer]:
    """A method's answers to unrelated questions.

    Args:
        results: lines of any methods and controls.
        method: whose answers are taken.
        metric: whose values are taken.
        control: a key of `tasks.controls.LABELS`.

    Raises:
        DataError: a line has no such metric, or there is none of the method.
    """
    found = []
    for result in results:
        if result.method == method and result.metadata.get(CONTROL) == LABELS[control]:
            for query in result.queries:
                if metric not in query.values:
                    raise DataError(
                        f"sample {result.sample} has no metric {metric!r}, only {', '.join(query.values)}; name one"
                    )
                found.append(JudgedAnswer(query.question, query.answer, query.values[metric], result.context_id))
    if not found:
        raise DataError(f"there is no answer of {method} to the control {LABELS[control]!r}; run that first")
    return found


def method_interference(
    results: Iterable[SampleResult], method: str, metric: str = METRIC, seed: int = 0
) -> Interference:
    """The interference of a method, from lines that also hold the method of `BEFORE`; see `measure_interference`.

    Raises:
        DataError: lines of one of them are missing, or a question was put to them in different wordings.
    """
    lines = [result for result in results if result.metadata.get(CONTROL) == LABELS["unrelated"]]
    plain = BEFORE.get(method, "closed-book")
    wordings = {name: {result.wording for result in lines if result.method == name} for name in (plain, method)}
    if wordings[plain] and wordings[method] and wordings[plain] != wordings[method]:
        raise DataError(
            f"{method} was asked in {sorted(wordings[method])} and {plain} in {sorted(wordings[plain])}; their answers "
            "can only be compared in the same wording"
        )
    before, after = (judged_answers(lines, name, metric) for name in (plain, method))
    return measure_interference(before, after, seed=seed)


def measure_interference(
    before: Sequence[JudgedAnswer] | Sequence[tuple[str, str, float]],
    after: Sequence[JudgedAnswer] | Sequence[tuple[str, str, float]],
    *,
    right_from: float = 1.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interference:
    """How answers after something differ from those before it.

    Args:
        before: answers without a context, as `JudgedAnswer` or as (question, answer, value); each question once, or
            once for each context.
        after: answers under a method; each is paired with the one before to the same question, of the same context
            where there are several.
        right_from: value from which an answer counts as right.
        confidence: of the interval.
        seed: of its bootstrap, by context; by answer where no context is named.

    Raises:
        DataError: there is no answer, a question has no answer before, or has several in other contexts.
        ConfigError: `right_from` or `confidence` is out of range.
    """
    require(0 < right_from <= 1, f"right_from must lie in 0..1 and above 0, got {right_from}")
    earlier = _by_question([_judged(item) for item in before])
    later = [_judged(item) for item in after]
    if not later:
        raise DataError("interference needs answers, got none")
    pairs = [(_partner(item, earlier), item) for item in later]
    clusters = [item.context or f"answer {index}" for index, item in enumerate(later)]
    differences = [item.value - old.value for old, item in pairs]
    rights = [(old.value >= right_from, item.value >= right_from) for old, item in pairs]
    count = len(pairs)
    return Interference(
        unchanged=sum(old.answer.strip() == item.answer.strip() for old, item in pairs) / count,
        before=sum(old.value for old, _ in pairs) / count,
        after=sum(item.value for _, item in pairs) / count,
        difference=bootstrap_mean(differences, clusters, confidence=confidence, seed=seed),
        num_right_before=sum(old for old, _ in rights),
        num_became_wrong=sum(old and not new for old, new in rights),
        num_became_right=sum(new and not old for old, new in rights),
        right_from=right_from,
        num_answers=count,
        num_contexts=len(set(clusters)),
    )


def _judged(item: JudgedAnswer | tuple[str, str, float]) -> JudgedAnswer:
    return item if isinstance(item, JudgedAnswer) else JudgedAnswer(*item)


def _by_question(answers: Iterable[JudgedAnswer]) -> Mapping[str, Mapping[str, JudgedAnswer]]:
    """Answers by question and context."""
    found: dict[str, dict[str, JudgedAnswer]] = {}
    for item in answers:
        other = found.setdefault(item.question, {}).setdefault(item.context, item)
        if (other.answer, other.value) != (item.answer, item.value):
            raise DataError(
                f"{item.question!r} was answered {other.answer!r} and {item.answer!r} before; one answer a context is "
                "expected"
            )
    return found


def _partner(item: JudgedAnswer, earlier: Mapping[str, Mapping[str, JudgedAnswer]]) -> JudgedAnswer:
    own = earlier.get(item.question, {})
    if item.context in own:
        return own[item.context]
    if len({(other.answer, other.value) for other in own.values()}) != 1:
        given = f"{len(own)} different answers in other contexts" if own else "no answer"
        raise DataError(f"{item.question!r} has {given} before; ask it without a context in the same wording")
    return next(iter(own.values()))
