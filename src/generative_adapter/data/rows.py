"""What a data set's row holds: Question and Record, and readers of a row's fields that name a bad field.

A field is named by its path, "document.summary.text"; `where` says of which row, "notes.jsonl, line 3". Leaves out:
which fields a data set has (`converters.py`), and files (`records.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from generative_adapter.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """A question with every answer that is acceptable, the preferred one first."""

    question: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise DataError(f"question {self.question!r} has no answer; at least one is expected")


@dataclass(frozen=True)
class Record:
    """A context, its questions (none for plain documents) and the name of where it came from.

    Attributes:
        context: the text.
        questions: asked about it, each with an answer.
        source: name of the file, the task or the document's own source.
        title: of the article the context is part of, where the format tells it; no part of equality.
        num_unanswered: questions without an answer, which were left out; no part of equality.
    """

    context: str
    questions: tuple[Question, ...] = ()
    source: str = ""
    title: str = field(default="", compare=False)
    num_unanswered: int = field(default=0, compare=False)


def value_at(row: Row, path: str, where: str) -> Any:
    """The value of a field, None where the row or one of its objects lacks it.

    Raises:
        DataError: a part of the path is something else than an object.
    """
    value: Any = row
    walked: list[str] = []
    for name in path.split("."):
        if not isinstance(value, Mapping):
            raise DataError(f'{where}: "{".".join(walked)}" is {kind(value)}; expected an object with "{name}"')
        value = value.get(name)
        walked.append(name)
    return value


def text_at(row: Row, path: str, where: str) -> str:
    """The text of a field.

    Raises:
        DataError: the field is missing, blank or no text.
    """
    return checked_text(value_at(row, path, where), where, f'"{path}"')


def texts_at(row: Row, path: str, where: str) -> list[str]:
    """The texts of a field that is a list of them; blank ones stay.

    Raises:
        DataError: the field is missing, no list, or holds something else than texts.
    """
    values = value_at(row, path, where)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        found = kind(values) if not isinstance(values, list) else f"a list with {kind(_first_non_text(values))}"
        raise DataError(f'{where}: "{path}" is {found}; expected a list of texts')
    return values


def is_blank(row: Row, path: str, where: str, *, null: bool = False) -> bool:
    """Whether a field is an empty text, or white space; with `null`, whether it may also be there without a value."""
    value = value_at(row, path, where)
    if value is None:
        return null and path in row
    return isinstance(value, str) and not value.strip()


def answers_in(given: Any, where: str) -> tuple[str, ...]:
    """The acceptable answers, stripped, without repetition.

    Args:
        given: a list of texts, of {"text": ...} or of lists of spans, or {"text": [...]} as hub sets have it.
        where: the row.

    Raises:
        DataError: anything else.
    """
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):
        given = given["text"]
    if not isinstance(given, list):
        raise DataError(f'{where}: "answers" is {kind(given)}; expected a list of texts or of {{"text"}}')
    return tuple(dict.fromkeys(_answer(answer, where).strip() for answer in given))


def checked_text(value: Any, where: str, field: str) -> str:
    """Returns a text that is not blank.

    Raises:
        DataError: it is something else; the message names `field`.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {field} is {kind(value)}; expected a text that is not empty")
    return value


def kind(value: Any) -> str:
    """What a message calls a value: missing, empty, or its type."""
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) and not value.strip() else f"a {type(value).__name__}"


def _answer(answer: Any, where: str) -> str:
    if isinstance(answer, Mapping):
        answer = answer.get("text")
    if isinstance(answer, list):  # the spans of one answer
        answer = ", ".join(checked_text(span, where, "an answer's span").strip() for span in answer)
    return checked_text(answer, where, "answer")


def _first_non_text(values: list[Any]) -> Any:
    return next(value for value in values if not isinstance(value, str))
