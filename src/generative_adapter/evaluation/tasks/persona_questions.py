"""Questions made from persona facts: "I live in Graz." of speaker 2 -> "Where does Speaker 2 live?", "in Graz".

Multi-Session Chat says of a turn which facts it tells, but asks nothing. A fact is a sentence in the first person; each
rule (`persona_rules`) is a pattern of the whole sentence and the question it answers. Facts that no rule fits are left
out: most ("I like pizza.") have no question that they alone answer. So are answers that speak of the speaker ("my
parents"), of more than one thing ("a cat, and I ...") or in more than `MAX_ANSWER_WORDS` words, since neither a reader
nor F1 could tell a right answer.

Of the 23,527 facts of 500 training conversations 2,474 (11 %) make a question; put together they are 1,998 questions,
four a conversation. Nothing is drawn at random: the same file gives the same questions to every method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from generative_adapter.evaluation.tasks.persona_rules import DIGITS, RULES, WORDS

MAX_ANSWER_WORDS = 6

_CONTRACTIONS = ((r"^i'm ", "I am "), (r"^i've ", "I have "), (r"^i'd (?=like |love )", "I would "))
_NOT_AN_ANSWER = re.compile(
    r"[,;:]|\b(i|i'm|i've|my|mine|me|myself|we|our|us|it|them|that|this|there|here|he|she|they|his|her|their|and|but|or|"
    r"because|since|so|when|who|which|while|if|now|too|also|again|today|soon|right now|lot|much|something|somewhere)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PersonaQuestion:
    """A question about a speaker.

    Attributes:
        question: naming the speaker.
        answers: right ones, those of several facts together where they answer the same question.
        rules: names of the rules that made it.
        facts: it was made from.
    """

    question: str
    answers: tuple[str, ...]
    rules: tuple[str, ...]
    facts: tuple[str, ...]


def sentences(text: str) -> list[str]:
    """The facts of an annotation, which may have several: split behind `.`, `!` or `?` and a space."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part.strip()]


def question_of(fact: str, speaker: str) -> PersonaQuestion | None:
    """The question that a fact answers, None where no rule fits.

    Args:
        fact: a sentence in the first person.
        speaker: what the speaker is called.
    """
    fact = fact.strip()
    statement = re.sub(r"\s+", " ", fact.rstrip(".!? ").replace("\u2019", "'"))
    for short, full in _CONTRACTIONS:
        statement = re.sub(short, full, statement, flags=re.IGNORECASE)
    for rule in RULES:
        match = rule.pattern.fullmatch(statement)
        if match is None:
            continue
        answer = match["a"].strip()
        if not _is_answer(answer):
            return None
        groups = {name: value.lower() for name, value in match.groupdict().items() if name != "a" and value}
        answers = [answer]
        if rule.prefix is not None:
            answers.append(f"{match[rule.prefix].lower()} {answer}")
        answers += [spelling[answer.lower()] for spelling in (DIGITS, WORDS) if answer.lower() in spelling]
        return PersonaQuestion(rule.question.format(speaker=speaker, **groups), tuple(answers), (rule.name,), (fact,))
    return None


def questions_of(facts: Sequence[tuple[str, str]]) -> tuple[list[PersonaQuestion], int]:
    """The questions of a conversation's facts, each asked once, and how many facts no rule fits.

    Facts that lead to the same question put their answers together: any of them is right. The first one's is the
    preferred answer.

    Args:
        facts: speaker and fact, in the order they are told.
    """
    questions: dict[str, PersonaQuestion] = {}
    num_left_out = 0
    for speaker, fact in facts:
        made = question_of(fact, speaker)
        if made is None:
            num_left_out += 1
            continue
        if (before := questions.get(made.question.lower())) is not None:
            made = PersonaQuestion(
                before.question,
                tuple(dict.fromkeys(before.answers + made.answers)),
                tuple(dict.fromkeys(before.rules + made.rules)),
                before.facts + made.facts,
            )
        questions[made.question.lower()] = made
    return list(questions.values()), num_left_out


def _is_answer(answer: str) -> bool:
    return bool(answer) and len(answer.split()) <= MAX_ANSWER_WORDS and not _NOT_AN_ANSWER.search(answer)
