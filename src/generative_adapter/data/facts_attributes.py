"""What can be stated and asked: kinds of entities and their attributes, from `facts_attributes.json`.

Placeholders of a template: `{S}`/`{s}` the entity as a subject (capitalised or not), `{P}`/`{p}` its possessive,
`{o}` the entity as an object, `{v}` the value, `{a}` the value with "a" or "an", `{d}` the value with the article
its pool needs, `{label}` the attribute's label.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from generative_adapter.data.facts_vocabulary import read_table

GENERIC_STATEMENTS = ("{P} {label} is {d}.", "The {label} of {o} is {d}.")
HELD_OUT_GENERIC_STATEMENTS = ("As for {o}, the {label} is {d}.",)

GENERIC_QUESTIONS = (
    "What is {p} {label}?",
    "What is the {label} of {o}?",
    "What's {p} {label}?",
    "{P} {label}?",
    "Name the {label} of {o}.",
    "Tell me {p} {label}.",
    "Tell me the {label} of {o}.",
    "Do you know {p} {label}?",
    "Can you tell me the {label} of {o}?",
    "Please give the {label} of {o}.",
    "{label} of {o}",
    "what is the {label} of {o}?",
    "{o}: {label}?",
    "According to the text, what is {p} {label}?",
    "I am looking for the {label} of {o}.",
    "Have you got the {label} of {o}?",
    "Would you look up {p} {label}?",
    "Let me hear {p} {label}.",
    "State the {label} of {o}.",
    "I wonder what {p} {label} is.",
    "Help me find the {label} of {o}.",
    "From what you read, what is the {label} of {o}?",
    "I forgot the {label} of {o}.",
    "{o}, {label}",
    "Say what {p} {label} is.",
    "Which is {p} {label}?",
)
GENERIC_WHO_QUESTIONS = (
    "Who is {p} {label}?",
    "Who is the {label} of {o}?",
    "What is the name of {p} {label}?",
    "Name the {label} of {o}.",
    "Tell me who the {label} of {o} is.",
    "Do you know who {p} {label} is?",
    "{P} {label}?",
    "{label} of {o}",
    "who is the {label} of {o}",
    "{o}: {label}?",
    "According to the text, who is {p} {label}?",
    "Have you got the name of {p} {label}?",
    "Would you look up who {p} {label} is?",
    "I wonder who the {label} of {o} is.",
    "Help me find the {label} of {o}.",
    "From what you read, who is {p} {label}?",
    "I forgot who {p} {label} is.",
    "What is {p} {label} called?",
    "Say who the {label} of {o} is.",
)
HELD_OUT_GENERIC_QUESTIONS = (
    "I need to know {p} {label}.",
    "Could you remind me of the {label} of {o}?",
    "Which {label} belongs to {o}?",
)
HELD_OUT_GENERIC_WHO_QUESTIONS = (
    "I need to know who {p} {label} is.",
    "Could you remind me who the {label} of {o} is?",
    "Give me the name of {p} {label}.",
)
NARRATOR_QUESTIONS = (
    "What is my {label}?",
    "What's my {label}?",
    "Tell me my {label}.",
    "Do you remember my {label}?",
    "my {label}?",
    "What did I say is my {label}?",
    "Can you tell me my {label}?",
)
NARRATOR_WHO_QUESTIONS = (
    "Who is my {label}?",
    "What is the name of my {label}?",
    "What is my {label} called?",
    "Tell me the name of my {label}.",
    "Do you remember who my {label} is?",
    "who is my {label}",
)
HELD_OUT_NARRATOR_QUESTIONS = ("Could you remind me what my {label} is?",)
HELD_OUT_NARRATOR_WHO_QUESTIONS = ("Could you remind me who my {label} is?",)


@dataclass(frozen=True)
class Templates:
    """The wordings of one attribute on one side, training or held out."""

    statements: tuple[str, ...]
    generic_statements: tuple[str, ...]
    questions: tuple[str, ...]
    generic_questions: tuple[str, ...]
    first_person: tuple[str, ...]
    narrator_questions: tuple[str, ...]


@dataclass(frozen=True)
class Attribute:
    """Something that can be known of an entity, with the pool of its values and its wordings.

    Attributes with the same `topic` could be taken for each other, so one entity has only one of them in a record.
    """

    label: str
    values: str
    topic: str
    held_out: bool
    is_person: bool
    templates: dict[bool, Templates]  # by whether they are held out


@dataclass(frozen=True)
class Kind:
    """A kind of entity: where its names come from, what it is called, and its attributes on each side."""

    kind: str
    names: str
    nouns: tuple[str, ...]  # "company" in "The company was founded ..."
    key: str  # "Company" in a key-value block
    weight: int
    attributes: dict[bool, tuple[Attribute, ...]]  # by whether they are held out


def _read_attribute(entry: dict) -> Attribute:
    who, generic = entry["who"], entry["generic"]
    if not generic:
        generic_texts: dict[bool, tuple[tuple[str, ...], ...]] = {False: ((), (), ()), True: ((), (), ())}
    elif who:
        generic_texts = {
            False: (GENERIC_STATEMENTS, GENERIC_WHO_QUESTIONS, NARRATOR_WHO_QUESTIONS),
            True: (HELD_OUT_GENERIC_STATEMENTS, HELD_OUT_GENERIC_WHO_QUESTIONS, HELD_OUT_NARRATOR_WHO_QUESTIONS),
        }
    else:
        generic_texts = {
            False: (GENERIC_STATEMENTS, GENERIC_QUESTIONS, NARRATOR_QUESTIONS),
            True: (HELD_OUT_GENERIC_STATEMENTS, HELD_OUT_GENERIC_QUESTIONS, HELD_OUT_NARRATOR_QUESTIONS),
        }
    templates = {}
    for held_out, prefix in ((False, ""), (True, "held_out_")):
        generic_statements, generic_questions, narrator_questions = generic_texts[held_out]
        if entry["label"] == "job":
            narrator_questions = NARRATOR_QUESTIONS if not held_out else HELD_OUT_NARRATOR_QUESTIONS
        templates[held_out] = Templates(
            statements=tuple(entry[f"{prefix}statements"]),
            generic_statements=generic_statements,
            questions=tuple(entry[f"{prefix}questions"]),
            generic_questions=generic_questions,
            first_person=tuple(entry.get(f"{prefix}first_person", ())),
            narrator_questions=narrator_questions,
        )
    return Attribute(entry["label"], entry["values"], entry["topic"], entry["held_out"], who, templates)


@lru_cache(maxsize=1)
def kinds() -> tuple[Kind, ...]:
    """Returns the shipped kinds of entities, read once."""
    result = []
    for entry in read_table("facts_attributes.json"):
        attributes = [_read_attribute(attribute) for attribute in entry["attributes"]]
        sides = {side: tuple(item for item in attributes if item.held_out == side) for side in (False, True)}
        result.append(Kind(entry["kind"], entry["names"], tuple(entry["nouns"]), entry["key"], entry["weight"], sides))
    return tuple(result)
