"""Synthetic facts: every question has one answer, which stands in the context, and held-out sides stay apart."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from generative_adapter.data.facts import (
    SPLITS,
    STYLES,
    facts_evaluation_set,
    record_and_facts,
    sample_facts_record,
)
from generative_adapter.data.facts_attributes import kinds
from generative_adapter.data.facts_sampling import Fact, side_of
from generative_adapter.data.facts_vocabulary import (
    MIN_SPLIT_WORDS,
    is_held_out,
    vocabulary,
    with_indefinite_article,
)
from generative_adapter.data.records import Record
from generative_adapter.errors import ConfigError

NUM_SAMPLES = 400


def _samples(split: str, style: str | None = None, num_facts: int = 5) -> list[tuple[Record, list[Fact]]]:
    rng = random.Random(11)
    return [record_and_facts(rng, num_facts, None, split, style) for _ in range(NUM_SAMPLES)]


def _names(samples: list[tuple[Record, list[Fact]]]) -> set[str]:
    return {fact.entity.name for _, facts in samples for fact in facts if not fact.entity.is_narrator}


def _labels(samples: list[tuple[Record, list[Fact]]]) -> set[tuple[str, str]]:
    return {(fact.entity.kind.kind, fact.attribute.label) for _, facts in samples for fact in facts}


@pytest.mark.parametrize("split", sorted(SPLITS))
@pytest.mark.parametrize("style", sorted(STYLES))
def test_answers_stand_in_the_context_and_questions_name_their_entity(split: str, style: str) -> None:
    rng = random.Random(5)
    for _ in range(60):
        record, facts = record_and_facts(rng, 6, None, split, style)
        assert record.source == "facts"
        assert len(record.questions) == len(facts) == 6
        assert not re.search(r"[{}]|\d{5}|  |\.\.", record.context), record.context
        for question, fact in zip(record.questions, facts, strict=True):
            assert question.answers[0] == fact.value
            assert fact.value in record.context
            names = [fact.entity.name, fact.entity.short_name or fact.entity.name]
            if fact.entity.is_narrator:
                assert re.search(r"\bmy\b", question.question)
            else:
                assert any(name.lower() in question.question.lower() for name in names)
                assert fact.entity.name.lower() in record.context.lower()


@pytest.mark.parametrize("num_facts", [1, 2, 4, 9, 40])
@pytest.mark.parametrize("split", sorted(SPLITS))
def test_no_question_has_two_answers(split: str, num_facts: int) -> None:
    rng = random.Random(num_facts)
    for _ in range(40):
        record, facts = record_and_facts(rng, num_facts, None, split, None)
        assert len(facts) == num_facts
        topics = Counter((fact.entity.name, fact.attribute.topic) for fact in facts)
        assert max(topics.values()) == 1
        values = Counter((fact.attribute.values, fact.value) for fact in facts)
        assert max(values.values()) == 1
        names = {fact.entity.name for fact in facts}
        words = [vocabulary().core_words(name) for name in names]
        assert sum(map(len, words)) == len(set().union(*words))
        asked = [question.question.lower().rstrip("?.") for question in record.questions]
        assert len(set(asked)) == len(asked)


def test_records_bind_values_to_entity_and_attribute() -> None:
    samples = _samples("train", num_facts=4)
    same_attribute = same_entity = 0
    for _, facts in samples:
        same_attribute += len({(fact.entity.kind.kind, fact.attribute.label) for fact in facts}) < len(facts)
        same_entity += len({fact.entity.name for fact in facts}) < len(facts)
    assert same_attribute > 0.5 * NUM_SAMPLES
    assert same_entity > 0.4 * NUM_SAMPLES


@pytest.mark.parametrize("style", ["canonical", "plain"])
def test_attributes_can_be_all_the_same_or_all_distinct(style: str) -> None:
    rng = random.Random(12)
    for _ in range(NUM_SAMPLES):
        _, facts = record_and_facts(rng, 3, None, "train", style, "same")
        labels = {(fact.entity.kind.kind, fact.attribute.label) for fact in facts}
        assert len(labels) < 3 and len({fact.entity.name for fact in facts}) >= 2
        _, facts = record_and_facts(rng, 3, None, "train", style, "distinct")
        assert len({fact.attribute.label for fact in facts}) == 3


def test_the_same_random_state_gives_the_same_record() -> None:
    first, second = random.Random(3), random.Random(3)
    for split in SPLITS:
        arguments = {"num_facts": 5, "num_questions": 3, "split": split}
        assert sample_facts_record(first, **arguments) == sample_facts_record(second, **arguments)
    assert sample_facts_record(first, num_facts=5) != sample_facts_record(random.Random(4), num_facts=5)
    assert facts_evaluation_set(5) == facts_evaluation_set(5) != facts_evaluation_set(5, seed=8)


def test_number_of_questions() -> None:
    rng = random.Random(2)
    assert len(sample_facts_record(rng, num_facts=6, num_questions=2).questions) == 2
    assert sample_facts_record(rng, num_facts=6, num_questions=0).questions == ()
    again = sample_facts_record(rng, num_facts=2, num_questions=6, style="plain").questions
    assert len({question.question for question in again}) == 6
    assert len({question.answers for question in again}) == 2


def test_tables_are_large_and_diverse() -> None:
    attributes = [attribute for kind in kinds() for side in (False, True) for attribute in kind.attributes[side]]
    held_out = [attribute for attribute in attributes if attribute.held_out]
    assert len(kinds()) >= 12
    assert len(attributes) - len(held_out) >= 70
    assert len(held_out) >= 12
    assert len({attribute.values for attribute in held_out}) >= 8
    for attribute in attributes:
        train = attribute.templates[False]
        assert len(train.statements) >= 3
        assert len(train.questions) >= 4
    sizes = {name: len(set(sides[False] + sides[True])) for name, sides in vocabulary().words.items()}
    for name, least in {"towns": 300, "jobs": 150, "foods": 150, "animals": 100, "surnames": 300}.items():
        assert sizes[name] >= least
    assert len(set(vocabulary().fillers)) >= 60


def test_held_out_tables_are_disjoint_from_training() -> None:
    for kind in kinds():
        train, held_out = ({attribute.label for attribute in kind.attributes[side]} for side in (False, True))
        assert not train & held_out
        for attribute in kind.attributes[False] + kind.attributes[True]:
            for field in ("statements", "generic_statements", "questions", "generic_questions", "first_person",
                          "narrator_questions"):  # fmt: skip
                ours, theirs = (set(getattr(attribute.templates[side], field)) for side in (False, True))
                assert not ours & theirs, (kind.kind, attribute.label)
                assert bool(ours) == bool(theirs), (kind.kind, attribute.label, field)
    for name, sides in vocabulary().words.items():
        if len(set(sides[False] + sides[True])) >= MIN_SPLIT_WORDS:
            assert not set(sides[False]) & set(sides[True]), name
            assert len(sides[True]) >= 5, name


def test_held_out_records_are_disjoint_from_training() -> None:
    train, held_out = _samples("train"), _samples("held_out")
    assert not _names(train) & _names(held_out)
    shared = {name for name, sides in vocabulary().words.items() if set(sides[False]) & set(sides[True])}
    shared |= set(vocabulary().numbers) | {"code", "room", "date", "time", "memory", "street"}
    values = [
        {(fact.attribute.values, fact.value) for _, facts in samples for fact in facts
         if fact.attribute.values not in shared}
        for samples in (train, held_out)
    ]  # fmt: skip
    assert len(values[1]) > 50
    assert not values[0] & values[1]
    held_out_attributes = {(kind.kind, attribute.label) for kind in kinds() for attribute in kind.attributes[True]}
    assert not _labels(train) & held_out_attributes
    assert _labels(held_out) >= held_out_attributes
    share = sum(fact.attribute.held_out for _, facts in held_out for fact in facts) / (5 * NUM_SAMPLES)
    assert 0.4 < share < 0.6


def test_one_axis_splits_hold_out_that_axis_only() -> None:
    train = _samples("train", "plain")
    names, templates, attributes = (
        _samples(f"held_out_{axis}", "plain") for axis in ("names", "templates", "attributes")
    )
    assert not _names(train) & _names(names)
    assert _labels(names) <= {(kind.kind, attribute.label) for kind in kinds() for attribute in kind.attributes[False]}
    assert all(fact.attribute.held_out for _, facts in attributes for fact in facts)
    assert not any(fact.attribute.held_out for _, facts in templates for fact in facts)
    for _, facts in templates + attributes:
        for fact in facts:
            if fact.entity.kind.kind == "person":
                assert not is_held_out(fact.entity.name.split(" ", 1)[0]) or " " in fact.entity.short_name


def _pattern(template: str, fact: Fact) -> str:
    name, value = re.escape(fact.entity.name), rf"(?:(?:an?|the) )?{re.escape(fact.value)}"
    short = re.escape(fact.entity.short_name or fact.entity.name)
    text = re.escape(template)
    for mark in "SsPpo":
        text = text.replace(rf"\{{{mark}\}}", rf"(?:{name}|{short})(?:'s)?")
    for mark in "vad":
        text = text.replace(rf"\{{{mark}\}}", value)
    return text.replace(r"\{label\}", re.escape(fact.attribute.label))


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_wordings_come_from_the_side_of_the_split(split: str) -> None:
    held_out = side_of(split).templates
    rng = random.Random(17)
    for _ in range(150):
        record, facts = record_and_facts(rng, 3, None, split, "plain")
        for question, fact in zip(record.questions, facts, strict=True):
            templates = fact.attribute.templates[held_out]
            statements = templates.statements + templates.generic_statements
            assert any(re.search(_pattern(text, fact), record.context, re.I) for text in statements), record.context
            questions = templates.questions + templates.generic_questions
            patterns = [_pattern(text.rstrip("?."), fact) for text in questions]
            assert any(re.fullmatch(pattern + r"[?.]?", question.question, re.I) for pattern in patterns), question


def test_splits_that_hold_out_wordings_use_no_style_without_wordings() -> None:
    for record, _ in _samples("held_out"):
        assert "| --- |" not in record.context
        assert not re.match(r"\w+( [:=-]|:) [^\n]*\n\w+[^.\n]*$", record.context)


def test_evaluation_set_is_plain_and_held_out() -> None:
    records = facts_evaluation_set(30, num_facts=4)
    assert len(records) == 30
    for record in records:
        assert len(record.questions) == 4
        assert "\n" not in record.context
        assert not any(filler in record.context for filler in vocabulary().fillers)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("oboe", "an oboe"), ("baker", "a baker"), ("ukulele", "a ukulele"), ("hour", "an hour"),
     ("university", "a university"), ("hot-air balloon ride", "a hot-air balloon ride"), ("emu", "an emu")],
)  # fmt: skip
def test_indefinite_article(word: str, expected: str) -> None:
    assert with_indefinite_article(word) == expected


@pytest.mark.parametrize("style", sorted(STYLES))
def test_no_word_follows_the_wrong_article(style: str) -> None:
    rng = random.Random(23)
    for _ in range(100):
        context = sample_facts_record(rng, num_facts=6, style=style).context
        assert not re.search(r"\ba (?:[aio]|e(?!u|w))[a-z]+", context), context
        assert not re.search(r"\ban (?!hour|honest|heir)[^aeiouAEIOU]", context), context


@pytest.mark.parametrize(
    "arguments",
    [{"num_facts": 0}, {"num_facts": 2, "split": "test"}, {"num_facts": 2, "style": "poem"},
     {"num_facts": 2, "attributes": "some"}, {"num_facts": 2, "num_questions": -1}],
)  # fmt: skip
def test_bad_arguments_are_config_errors(arguments: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        sample_facts_record(random.Random(1), **arguments)
    with pytest.raises(ConfigError, match="expected"):
        facts_evaluation_set(-1)
