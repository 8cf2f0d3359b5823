"""How one fact is said and asked: templates filled with names, pronouns and values.

Leaves out: how sentences are arranged to a text (`facts_rendering.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from generative_adapter.data.facts_sampling import Entity, Fact
from generative_adapter.data.facts_vocabulary import vocabulary, with_indefinite_article
from generative_adapter.data.records import Question

PRONOUNS = {
    "female": {"S": "She", "s": "she", "P": "Her", "p": "her", "o": "her"},
    "male": {"S": "He", "s": "he", "P": "His", "p": "his", "o": "him"},
    "thing": {"S": "It", "s": "it", "P": "Its", "p": "its", "o": "it"},
}
GENERIC_STATEMENT_SHARE = 0.2
GENERIC_QUESTION_SHARE = 0.3
SHORT_NAME_SHARE = 0.15
LOWER_CASE_SHARE = 0.05


def capitalized(text: str) -> str:
    """Returns the text with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def _forms(name: str) -> dict[str, str]:
    capital = capitalized(name)
    return {"S": capital, "s": name, "P": f"{capital}'s", "p": f"{name}'s", "o": name}


def pronoun_forms(rng: random.Random, entity: Entity) -> dict[str, str]:
    """Returns what stands for an entity once it was named: "she", "it", "the company"."""
    if entity.kind.nouns and rng.random() < 0.6:
        return _forms(f"the {rng.choice(entity.kind.nouns)}")
    return PRONOUNS[entity.gender]


def _fill(template: str, forms: dict[str, str], fact: Fact) -> str:
    value = fact.value
    article = vocabulary().articles.get(fact.attribute.values)
    fitting = with_indefinite_article(value) if article == "a" else f"{article} {value}" if article else value
    label = fact.attribute.label
    text = template.format(**forms, v=value, a=with_indefinite_article(value), d=fitting, label=label)
    return capitalized(text)


def statement(rng: random.Random, fact: Fact, held_out: bool, forms: dict[str, str] | None = None) -> str:
    """Returns one sentence that states the fact.

    Args:
        rng: the source of chance.
        fact: what to state.
        held_out: whether to use the held-out wordings.
        forms: what to call the entity instead of its name, as in `pronoun_forms`.
    """
    if fact.entity.is_narrator:
        return _fill(rng.choice(fact.attribute.templates[held_out].first_person), {}, fact)
    templates = fact.attribute.templates[held_out]
    generic = templates.generic_statements
    choices = generic if generic and rng.random() < GENERIC_STATEMENT_SHARE else templates.statements
    if forms is not None:
        # "The mayor of it" is no English: a pronoun stands first or the name stays.
        fitting = [template for template in choices if template.startswith(("{S}", "{P}"))]
        if fitting:
            return _fill(rng.choice(fitting), forms, fact)
    return _fill(rng.choice(choices), _forms(fact.entity.name), fact)


def canonical_statement(fact: Fact, held_out: bool) -> str:
    """Returns the fact in the one wording that most attributes share: "The home town of X is Y."."""
    templates = fact.attribute.templates[held_out]
    return _fill((templates.generic_statements or templates.statements)[-1], _forms(fact.entity.name), fact)


def first_person_statement(rng: random.Random, fact: Fact, held_out: bool) -> str | None:
    """Returns the fact as its entity would say it ("I play the oboe."), or None where nobody would."""
    templates = fact.attribute.templates[held_out].first_person
    return _fill(rng.choice(templates), {}, fact) if templates else None


def joined_statement(rng: random.Random, first: Fact, second: Fact, held_out: bool) -> str:
    """Returns one sentence that states two facts about the same entity."""
    entity = first.entity
    name = capitalized(entity.name)
    one, two = statement(rng, first, held_out), statement(rng, second, held_out)
    if one.startswith(f"{name} ") and two.startswith(f"{name} ") and "," not in one + two:
        one_predicate, two_predicate = one[len(name) + 1 : -1], two[len(name) + 1 : -1]
        if rng.random() < 0.5:
            return f"{name} {one_predicate} and {two_predicate}."
        return f"{name}, {'who' if entity.gender != 'thing' else 'which'} {one_predicate}, {two_predicate}."
    two = statement(rng, second, held_out, PRONOUNS[entity.gender])
    for word in ("S", "P"):
        start = f"{PRONOUNS[entity.gender][word]} "
        if two.startswith(start):
            return f"{one[:-1]}, and {two[0].lower()}{two[1:]}"
    return f"{one} {two}"


def question(
    rng: random.Random, fact: Fact, held_out: bool, avoid: Sequence[str] = (), canonical: bool = False
) -> Question:
    """Returns a question about the fact, worded unlike those in `avoid` where possible.

    The first answer is the value as the context writes it; the others add an article.
    """
    text = _canonical_question(fact, held_out) if canonical else _question_text(rng, fact, held_out)
    for _ in range(0 if canonical else 10):
        if text not in avoid:
            break
        text = _question_text(rng, fact, held_out)
    answers = [fact.value]
    article = vocabulary().articles.get(fact.attribute.values)
    if article:
        answers += [f"the {fact.value}", with_indefinite_article(fact.value)]
    elif fact.value.startswith("the "):
        answers.append(fact.value[len("the ") :])
    return Question(text, tuple(answers))


def _canonical_question(fact: Fact, held_out: bool) -> str:
    templates = fact.attribute.templates[held_out]
    choices = templates.generic_questions[1:2] or templates.questions
    return capitalized(choices[0].format(**_forms(fact.entity.name), label=fact.attribute.label))


def _question_text(rng: random.Random, fact: Fact, held_out: bool) -> str:
    entity, label = fact.entity, fact.attribute.label
    templates = fact.attribute.templates[held_out]
    if entity.is_narrator:
        return rng.choice(templates.narrator_questions).format(label=label)
    generic = templates.generic_questions
    choices = generic if generic and rng.random() < GENERIC_QUESTION_SHARE else templates.questions
    name = entity.short_name if entity.short_name and rng.random() < SHORT_NAME_SHARE else entity.name
    text = rng.choice(choices).format(**_forms(name), label=label)
    if text.endswith(("?", ".")):
        text = capitalized(text) if rng.random() < 0.9 else text
    return text.lower().rstrip("?.") if rng.random() < LOWER_CASE_SHARE else text
