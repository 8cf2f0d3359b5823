"""Controls: the wrong document, a shuffled one, questions about something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest

from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.metrics import METRICS, normalize
from generative_adapter.evaluation.tasks.controls import Control, text_parts, unrelated_questions
from generative_adapter.evaluation.tasks.document_qa import WORDINGS
from generative_adapter.evaluation.tasks.needle import Needle
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample
from generative_adapter.methods.protocol import Context, Query


@dataclass(frozen=True)
class Given:
    """Samples made by hand."""

    given: tuple[TaskSample, ...]
    name: str = "given"
    skipped: Mapping[str, int] = field(default_factory=lambda: {"without an answer": 2})

    def samples(self) -> Iterator[TaskSample]:
        return iter(self.given)


def sample(identity: str, *documents: str, text: str | None = None, examples=()) -> TaskSample:
    context = Context(text or "\n\n".join(documents), documents, examples)
    query = TaskQuery("1", Query(f"What is in {identity}?"), (identity,))
    return TaskSample(identity, context, (query,), WORDINGS, 7, ("f1",), {"context_tokens": 512})


def texts(count: int) -> list[str]:
    return [
        f"Text number {i} tells of things that nobody else in the whole wide world has seen {i}." for i in range(count)
    ]


def by_control(task: Given, control: str, **settings) -> list[TaskSample]:
    return list(Control(task, control, **settings).samples())


def test_own_documents_are_only_marked() -> None:
    task = Given(tuple(sample(f"s{i}", text) for i, text in enumerate(texts(3))))
    control = Control(task, "own")
    assert control.name == "given/own" and control.skipped == {"without an answer": 2}
    for before, after in zip(task.given, control.samples(), strict=True):
        assert after.metadata == {"context_tokens": 512, "control": "own document"}
        assert replace(after, id=before.id, metadata=before.metadata) == before


@pytest.mark.parametrize("seed", range(10))
def test_other_documents_share_no_text(seed: int) -> None:
    """Groups that overlap in a ring: each may have any but itself and its two neighbours."""
    own = texts(7)
    task = Given(tuple(sample(f"s{i}", own[i], own[(i + 1) % 7]) for i in range(7)))
    found = by_control(task, "other-document", seed=seed)
    by_id = {each.id: each for each in task.given}
    for before, after in zip(task.given, found, strict=True):
        assert after.queries == before.queries and after.metadata["control"] == "other document"
        assert after.context == by_id[after.metadata["context_of"]].context
        assert not set(before.context.documents) & set(after.context.documents)
        assert not {document for document in before.context.documents if document in after.context.text}
    donors = [after.metadata["context_of"] for after in found]
    assert sorted(donors) == sorted(by_id)  # each document is used once
    assert donors == [after.metadata["context_of"] for after in by_control(task, "other-document", seed=seed)]
    assert len({str(by_control(task, "other-document", seed=s)) for s in range(10)}) > 1


def test_what_counts_as_shared() -> None:
    long, other = texts(2)
    assert text_parts(Context(f"Title\n{long}")) & text_parts(Context(f"Something before. {long.upper()} And behind."))
    assert not text_parts(Context(f"Title\n{long}")) & text_parts(Context(f"Title\n{other}"))
    one, two = Context("a", examples=(("in", "out"),)), Context("b", examples=(("x", "y"), ("In", "out.")))
    assert text_parts(one) & text_parts(two)
    assert text_parts(Context("Short.", ("Short.",))) & text_parts(Context("Short. Long.", ("Long.", "Short.")))


def test_no_other_document_is_said() -> None:
    own = texts(3)
    overlapping = Given(tuple(sample(f"s{i}", own[i], own[(i + 1) % 3]) for i in range(3)))
    with pytest.raises(DataError, match="3 samples can't all be given the document of another"):
        by_control(overlapping, "other-document")
    with pytest.raises(DataError, match="1 samples"):
        by_control(Given((sample("s", own[0]),)), "other-document")


def test_needles_at_other_depths_are_no_other_documents() -> None:
    def words(text: str) -> int:
        return len(text.split())

    same = Needle(words, lengths=(200,), depths=(0, 0.5, 1))
    with pytest.raises(DataError, match="overlap less"):
        list(Control(same, "other-document").samples())
    task = Needle(words, lengths=(200,), depths=(0, 1), seeds=(0, 1))
    for after in Control(task, "other-document").samples():
        assert after.metadata["context_of"].split("/")[-2] != str(after.metadata["seed"])
        assert after.queries[0].references[0] not in after.context.text


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_documents_have_the_same_words(seed: int) -> None:
    own = texts(4)
    pairs = (("the first input of all", "its output"),)
    task = Given((sample("a", own[0], own[1]), sample("b", own[2], own[3], examples=pairs)))
    found = by_control(task, "shuffled", seed=seed)
    for before, after in zip(task.given, found, strict=True):
        assert after.metadata["control"] == "shuffled document" and after.queries == before.queries
        assert after.context.text != before.context.text
        pieces = [(before.context.text, after.context.text)]
        pieces += list(zip(before.context.documents, after.context.documents, strict=True))
        pieces += [
            (one, other)
            for pair in zip(before.context.examples, after.context.examples, strict=True)
            for one, other in zip(*pair, strict=True)
        ]
        for one, other in pieces:
            assert Counter(one.split()) == Counter(other.split())
        kept = sum(x == y for x, y in zip(before.context.text.split(), after.context.text.split(), strict=True))
        assert kept < len(before.context.text.split()) / 2
    assert found == by_control(task, "shuffled", seed=seed) != by_control(task, "shuffled", seed=seed + 1)


def test_unrelated_questions_are_asked_under_each_context() -> None:
    task = Given(tuple(sample(f"s{i}", text) for i, text in enumerate(texts(3))))
    found = by_control(task, "unrelated")
    for before, after in zip(task.given, found, strict=True):
        assert after.context == before.context and after.wordings == before.wordings
        assert after.queries == unrelated_questions() and after.metrics == ("f1", "exact_match", "recall")
        assert after.metadata["control"] == "unrelated question" and after.id == f"{before.id}/unrelated"
    some = by_control(task, "unrelated", num_unrelated=9, seed=3)
    assert all(each.queries == some[0].queries for each in some) and len(some[0].queries) == 9
    more = by_control(task, "unrelated", num_unrelated=20, seed=3)[0].queries
    assert set(item.id for item in some[0].queries) < set(item.id for item in more)
    assert by_control(task, "unrelated", num_unrelated=9, seed=4)[0].queries != some[0].queries


def test_packaged_questions() -> None:
    questions = unrelated_questions()
    assert len(questions) >= 60
    assert len({item.query.question for item in questions}) == len({item.id for item in questions}) == len(questions)
    for item in questions:
        assert item.query.question.endswith("?") and not item.query.options and item.metadata["category"]
        for answer in item.references:
            assert normalize(answer), item  # "A" would be taken for an article
            assert len(answer.split()) <= 4
            assert not set(normalize(answer).split()) <= set(normalize(item.query.question).split()), item
        assert all(METRICS[name](item.references[0], item.references) == 1 for name in ("f1", "exact_match", "recall"))


def test_unknown_controls() -> None:
    task = Given((sample("s", "Text."),))
    with pytest.raises(ConfigError, match="'random'; expected one of own, other-document, shuffled, unrelated"):
        Control(task, "random")
    for number in (0, 1000):
        with pytest.raises(ConfigError, match="num_unrelated"):
            Control(task, "unrelated", num_unrelated=number)
