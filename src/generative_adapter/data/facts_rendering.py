"""How the facts of a record are arranged to a text: the styles.

    plain         sentences in a row               paragraph     grouped by entity, with pronouns
    filled        with sentences that say nothing  memo          a memo, e-mail or meeting note with a heading
    lines         one fact a line                  chat          messages; people speak about themselves
    bullets       a list                           document      Markdown sections
    key_value     "Name: ..." blocks               narrator      somebody writes about themselves and others
    table         Markdown or comma-separated

    canonical     one wording for all facts, "The home town of X is Y."; for the first steps of a training run, and
                  never drawn unless it is asked for

Leaves out: which facts there are (`facts_sampling.py`) and how one is worded (`facts_wording.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from generative_adapter.data.facts_sampling import Entity, Fact, Side
from generative_adapter.data.facts_vocabulary import vocabulary
from generative_adapter.data.facts_wording import (
    canonical_statement,
    capitalized,
    first_person_statement,
    joined_statement,
    pronoun_forms,
    statement,
)

JOIN_SHARE = 0.35
TITLES = (
    "Notes", "Overview", "Handbook", "Internal notes", "Summary", "Things to remember", "Fact sheet",
    "Weekly report", "Reference", "Background", "Quick guide", "Collected notes", "Who and what", "For the record",
)  # fmt: skip
HEADINGS = ("Memo", "Meeting notes", "Notes from today", "Internal memo", "Update", "For your information", "Minutes")
GREETINGS = ("Hi all,", "Dear all,", "Hello everyone,", "Dear colleagues,", "Hi team,", "Good morning,")
CLOSINGS = ("Best regards,", "Thanks,", "Kind regards,", "See you soon,", "Best,", "Cheers,")
LEAD_INS = (
    "By the way: ", "FYI: ", "Just so you know: ", "Quick note: ", "Did you hear? ", "One more thing. ", "Oh, and: ",
    "I looked it up. ", "Update: ", "For the list: ", "Reminder: ",
)  # fmt: skip
REPLIES = (
    "Thanks!", "Good to know.", "Oh, I did not know that.", "Noted.", "Okay.", "Great, thank you.", "Interesting!",
    "Got it.", "Ha, really?", "I will write that down.", "Nice.", "Sure.", "Makes sense.", "Cool, thanks.",
    "Anything else?", "Hm, let me check.", "Right.", "That is good news.",
)  # fmt: skip


def _by_entity(facts: Sequence[Fact]) -> list[tuple[Entity, list[Fact]]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.entity.name, []).append(fact)
    return [(group[0].entity, group) for group in groups.values()]


def _with_fillers(rng: random.Random, sentences: list[str], share: float = 1.0) -> list[str]:
    if rng.random() >= share:
        return sentences
    sentences = list(sentences)
    for filler in rng.sample(vocabulary().fillers, rng.randint(1, max(2, len(sentences) // 2))):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    return sentences


def _sentences(rng: random.Random, facts: Sequence[Fact], side: Side) -> list[str]:
    return [statement(rng, fact, side.templates) for fact in facts]


def _entity_sentences(rng: random.Random, entity: Entity, facts: Sequence[Fact], side: Side) -> list[str]:
    """States the facts of one entity; after the first sentence a pronoun or "the company" stands for it."""
    sentences: list[str] = []
    rest = list(facts)
    person_before = False  # a pronoun after another person would be unclear
    while rest:
        fact = rest.pop(0)
        if rest and not sentences and not entity.is_narrator and rng.random() < JOIN_SHARE:
            other = rest.pop(0)
            sentences.append(joined_statement(rng, fact, other, side.templates))
            person_before = fact.attribute.is_person or other.attribute.is_person
            continue
        unclear = person_before and entity.gender != "thing"
        use_name = not sentences or unclear or entity.is_narrator or rng.random() < 0.15
        sentences.append(statement(rng, fact, side.templates, None if use_name else pronoun_forms(rng, entity)))
        person_before = fact.attribute.is_person
    return sentences


def _flowing(rng: random.Random, facts: Sequence[Fact], side: Side) -> list[list[str]]:
    return [_entity_sentences(rng, entity, group, side) for entity, group in _by_entity(facts)]


def _plain(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    return " ".join(_sentences(rng, facts, side))


def _filled(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    return " ".join(_with_fillers(rng, _sentences(rng, facts, side)))


def _lines(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    return "\n".join(_with_fillers(rng, _sentences(rng, facts, side), 0.15))


def _bullets(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    sentences = _sentences(rng, facts, side)
    mark = rng.choice(("- ", "* ", "• ", "number"))
    heading = f"{rng.choice(TITLES)}:\n" if rng.random() < 0.4 else ""
    if mark == "number":
        return heading + "\n".join(f"{number}. {text}" for number, text in enumerate(sentences, 1))
    return heading + "\n".join(mark + text for text in sentences)


def _key_value(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    separator = rng.choice((": ", ": ", ": ", " - ", " = "))
    blocks = []
    for entity, group in _by_entity(facts):
        rows = [(entity.kind.key, entity.name)] + [(capitalized(fact.attribute.label), fact.value) for fact in group]
        blocks.append("\n".join(f"{key}{separator}{value}" for key, value in rows))
    return "\n\n".join(blocks)


def _table(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    markdown = rng.random() < 0.6
    tables: dict[str, list[tuple[Entity, list[Fact]]]] = {}
    for entity, group in _by_entity(facts):
        tables.setdefault(entity.kind.kind, []).append((entity, group))
    texts = []
    for groups in tables.values():
        labels = list(dict.fromkeys(fact.attribute.label for _, group in groups for fact in group))
        rows = [[groups[0][0].kind.key] + [capitalized(label) for label in labels]]
        for entity, group in groups:
            values = {fact.attribute.label: fact.value for fact in group}
            rows.append([entity.name] + [values.get(label, "-") for label in labels])
        if markdown:
            rows.insert(1, ["---"] * len(rows[0]))
            texts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        else:
            texts.append("\n".join("; ".join(row) for row in rows))
    return "\n\n".join(texts)


def _paragraph(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    sentences = [text for group in _flowing(rng, facts, side) for text in group]
    return " ".join(sentences)


def _memo(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    words = vocabulary()
    used = {word for fact in facts for text in (fact.entity.name, fact.value) for word in text.split()}
    sender = next(name for name in iter(lambda: words.draw(rng, "first_name", side.names), "") if name not in used)
    date = words.draw(rng, "date", side.names)
    groups = _flowing(rng, facts, side)
    if rng.random() < 0.5:
        body = " ".join(_with_fillers(rng, [text for group in groups for text in group], 0.5))
    else:
        body = "\n".join(f"- {' '.join(group)}" for group in groups)
    if rng.random() < 0.5:
        subject = rng.choice(TITLES).lower()
        head = f"From: {sender}\nDate: {date}\nSubject: {subject}\n\n{rng.choice(GREETINGS)}"
        return f"{head}\n\n{body}\n\n{rng.choice(CLOSINGS)}\n{sender}"
    return f"{rng.choice(HEADINGS)}, {date}\n\n{body}"


def _chat(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    words = vocabulary()
    used = {word for fact in facts for text in (fact.entity.name, fact.value) for word in text.split()}
    others: list[str] = []
    while len(others) < 2:
        name = words.draw(rng, "first_name", side.names)
        if name not in used and name not in others:
            others.append(name)
    messages: list[str] = []
    for fact in facts:
        own = first_person_statement(rng, fact, side.templates) if rng.random() < 0.75 else None
        speaker = fact.entity.name if own else rng.choice(others)
        text = own or statement(rng, fact, side.templates)
        lead_in = rng.choice(LEAD_INS) if rng.random() < 0.3 else ""
        messages.append(f"{speaker}: {lead_in}{text}")
        if rng.random() < 0.35:
            messages.append(f"{rng.choice([name for name in others if name != speaker])}: {rng.choice(REPLIES)}")
    return "\n".join(messages)


def _document(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    parts = [f"# {rng.choice(TITLES)}"] if rng.random() < 0.8 else []
    for (entity, _), group in zip(_by_entity(facts), _flowing(rng, facts, side), strict=True):
        body = "\n".join(f"- {text}" for text in group) if rng.random() < 0.4 else " ".join(group)
        parts.append(f"## {capitalized(entity.name)}\n\n{body}")
        if rng.random() < 0.15:
            parts.append(rng.choice(vocabulary().fillers))
    return "\n\n".join(parts)


def _narrator(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    separator = rng.choice((" ", " ", "\n"))
    return separator.join(_with_fillers(rng, _sentences(rng, facts, side), 0.4))


def _canonical(rng: random.Random, facts: Sequence[Fact], side: Side) -> str:
    return " ".join(canonical_statement(fact, side.templates) for fact in facts)


STYLES: dict[str, tuple[int, Callable[[random.Random, Sequence[Fact], Side], str]]] = {
    "plain": (6, _plain),
    "filled": (3, _filled),
    "lines": (3, _lines),
    "bullets": (2, _bullets),
    "key_value": (2, _key_value),
    "table": (1, _table),
    "paragraph": (5, _paragraph),
    "memo": (2, _memo),
    "chat": (2, _chat),
    "document": (2, _document),
    "narrator": (2, _narrator),
    "canonical": (0, _canonical),
}
WITHOUT_TEMPLATES = ("key_value", "table")  # no statement wording, so not part of splits that hold wordings out
