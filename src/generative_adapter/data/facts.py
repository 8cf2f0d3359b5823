"""Records of synthetic facts, to train and test recall of a context that is not in the prompt.

Every fact is made up at sampling time from the project's own tables: 20 kinds of entities, 172 attributes
with several wordings each, and eleven styles of text. Nothing in a base model's memory answers the questions, and a
record holds the same attribute of several entities and several attributes of the same entity, so that a value must
be bound to both.

Splits hold out names and values, wordings, attributes, or all three (`SPLITS` in `facts_sampling.py`):

    train                 nothing held out
    held_out              held-out names, values and wordings; half of the attributes held out
    held_out_names        only names and values        held_out_templates    only wordings
    held_out_attributes   only attributes, all of them held out

Leaves out: the tables (`facts_vocabulary.json`, `facts_attributes.json`).
"""

from __future__ import annotations

import random

from generative_adapter.data.facts_rendering import STYLES, WITHOUT_TEMPLATES
from generative_adapter.data.facts_sampling import SPLITS, Fact, sample_facts, side_of
from generative_adapter.data.facts_wording import question
from generative_adapter.data.records import Question, Record
from generative_adapter.errors import ConfigError

ATTRIBUTE_CHOICES = ("mixed", "distinct", "same")

__all__ = ["SPLITS", "STYLES", "facts_evaluation_set", "sample_facts_record"]


def sample_facts_record(
    rng: random.Random,
    *,
    num_facts: int,
    num_questions: int | None = None,
    split: str = "train",
    style: str | None = None,
    attributes: str | None = None,
) -> Record:
    """Returns one record of made-up facts with questions about them.

    A question's first answer is written exactly so in the context.

    Args:
        rng: the only source of chance; the same state gives the same record.
        num_facts: how many facts the context states.
        num_questions: how many are asked, in random order; more than `num_facts` ask some again in other words.
            None asks each once.
        split: one of `SPLITS`.
        style: one of `STYLES`; None draws one.
        attributes: `distinct`, so that the attribute alone tells the facts apart; `same`, so that only the entity does;
            `mixed`; None: what the style is for, `distinct` for `canonical` and `mixed` for the others.

    Raises:
        ConfigError: an unknown split, style or choice of attributes, or a number out of range.
    """
    return record_and_facts(rng, num_facts, num_questions, split, style, attributes)[0]


def record_and_facts(
    rng: random.Random,
    num_facts: int,
    num_questions: int | None,
    split: str,
    style: str | None,
    attributes: str | None = None,
) -> tuple[Record, list[Fact]]:
    """Returns a record as `sample_facts_record` does, with the facts it states in the order of its questions."""
    side = side_of(split)
    if num_questions is not None and num_questions < 0:
        raise ConfigError(f"num_questions is {num_questions}; expected 0 or more, or None")
    if style is None:
        names = [name for name in STYLES if not (side.templates and name in WITHOUT_TEMPLATES)]
        style = rng.choices(names, [STYLES[name][0] for name in names])[0]
    if style not in STYLES:
        raise ConfigError(f"unknown style {style!r} of the synthetic facts; expected one of {', '.join(STYLES)}")
    attributes = attributes or ("distinct" if style == "canonical" else "mixed")
    if attributes not in ATTRIBUTE_CHOICES:
        raise ConfigError(
            f"unknown choice of attributes {attributes!r}; expected one of {', '.join(ATTRIBUTE_CHOICES)}"
        )
    facts = sample_facts(rng, num_facts, side, style == "narrator", attributes == "distinct", attributes == "same")
    if rng.random() < 0.6:
        rng.shuffle(facts)
    context = STYLES[style][1](rng, facts, side)

    asked: list[Fact] = []
    questions: list[Question] = []
    wanted = len(facts) if num_questions is None else num_questions
    while len(questions) < wanted:
        order = rng.sample(facts, len(facts))[: wanted - len(questions)]
        avoid = [item.question for item in questions]
        questions += [question(rng, fact, side.templates, avoid, style == "canonical") for fact in order]
        asked += order
    return Record(context=context, questions=tuple(questions), source="facts"), asked


def facts_evaluation_set(num_records: int, num_facts: int = 4, split: str = "held_out", seed: int = 7) -> list[Record]:
    """Returns the same records for the same arguments: plain sentences, one question a fact.

    Raises:
        ConfigError: an unknown split, or a number out of range.
    """
    if num_records < 0:
        raise ConfigError(f"num_records is {num_records}; expected 0 or more")
    rng = random.Random(seed)
    return [sample_facts_record(rng, num_facts=num_facts, split=split, style="plain") for _ in range(num_records)]
