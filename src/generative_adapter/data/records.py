"""Records: a context with its questions, and the readers that make them from files.

A file's format is found from its content, never from its name (only a `.zst` ending matters):

    SQuAD v1.1        {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}
    questions, JSONL  {"context", "qa": [{"question", "answers": ["..."] or [{"text": "..."}] or [["span", "span"]]}]}
    documents, JSONL  {"text"}

Leaves out: downloading, tokenising, and conversations and classification tasks, which have readers of their own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from generative_adapter.errors import DataError, MissingDependencyError

FORMATS = (
    'SQuAD v1.1 JSON ({"data": [...]}), JSON Lines with {"context", "qa": [{"question", "answers"}]}, '
    'or JSON Lines with {"text"}, each optionally compressed (.zst)'
)


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
    """A context, its questions (none for plain documents) and the name of where it came from."""

    context: str
    questions: tuple[Question, ...] = ()
    source: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """Yields the records of one file, whose format is found from its content.

    SQuAD questions and questions in JSON Lines that carry no answer at all are left out; answers are stripped and
    repeated ones dropped.

    Args:
        path: a JSON or JSON Lines file in UTF-8, optionally compressed (`.zst`).

    Yields:
        Records with `source` set to the file's name without endings, or to a document's own "source".

    Raises:
        DataError: the file is missing, of an unknown format, or holds a bad line.
        MissingDependencyError: the file is compressed and `zstandard` is not installed.
    """
    path = Path(path)
    source = path.name.split(".", 1)[0]
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {FORMATS}")
    with _open_text(path) as lines:
        try:
            first_number, first_line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
            if not first_number:
                raise DataError(f"{path}: the file is empty; expected {FORMATS}")
            first = _parse_line(first_line)
            if first is None or (isinstance(first, dict) and "data" in first):
                yield from _squad_records(path, first_line + lines.read() if first is None else first, source)
                return
            _check_json_lines(path, first_number, first)
            yield _line_record(path, first_number, first, source)
            for number, line in enumerate(lines, first_number + 1):
                if line.strip():
                    yield _line_record(path, number, _parse_line(line), source)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error}); expected {FORMATS}") from error


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    if path.suffix != ".zst":
        with path.open(encoding="utf-8-sig") as lines:
            yield lines
        return
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError("pip install 'generative-adapter[train]'") from error
    try:
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig")
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: not a readable zstandard file ({error}); expected {FORMATS}") from error


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _check_json_lines(path: Path, number: int, value: Any) -> None:
    if not isinstance(value, dict) or not ("text" in value or "context" in value):
        given = f"an object with {sorted(value)[:8]}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise DataError(f"{path}, line {number}: unknown format, found {given}; expected {FORMATS}")


def _line_record(path: Path, number: int, value: Any, source: str) -> Record:
    where = f"{path}, line {number}"
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object; expected one object a line: {FORMATS}")
    if "context" not in value:
        own_source = value.get("source")
        text = _text(value.get("text"), where, '"text"')
        return Record(context=text, source=own_source if isinstance(own_source, str) and own_source else source)
    context = _text(value["context"], where, '"context"')
    return Record(context=context, questions=_questions(value.get("qa"), where, '"qa"'), source=source)


def _squad_records(path: Path, content: Any, source: str) -> Iterator[Record]:
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}); expected {FORMATS}"
            ) from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f'{path}: unknown format, no list under "data"; expected {FORMATS}')
    for article_number, article in enumerate(content["data"], 1):
        where = f"{path}, article {article_number}"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise DataError(f'{where}: no list under "paragraphs"; expected {FORMATS}')
        for paragraph_number, paragraph in enumerate(paragraphs, 1):
            place = f"{where}, paragraph {paragraph_number}"
            if not isinstance(paragraph, dict):
                raise DataError(f'{place}: not an object; expected {{"context", "qas"}}')
            context = _text(paragraph.get("context"), place, '"context"')
            yield Record(context=context, questions=_questions(paragraph.get("qas"), place, '"qas"'), source=source)


def _questions(items: Any, where: str, field: str) -> tuple[Question, ...]:
    if not isinstance(items, list):
        raise DataError(f'{where}: {field} is {_kind(items)}; expected a list of {{"question", "answers"}}')
    questions = []
    for item in items:
        if not isinstance(item, dict):
            raise DataError(f'{where}: {field} holds {_kind(item)}; expected objects with "question" and "answers"')
        question = _text(item.get("question"), where, '"question"')
        given = item.get("answers")
        if not isinstance(given, list):
            raise DataError(f'{where}: "answers" is {_kind(given)}; expected a list of texts or of {{"text"}}')
        answers = [_answer(answer, where) for answer in given]
        if answers:
            questions.append(Question(question, tuple(dict.fromkeys(answer.strip() for answer in answers))))
    return tuple(questions)


def _answer(answer: Any, where: str) -> str:
    if isinstance(answer, dict):
        answer = answer.get("text")
    if isinstance(answer, list):  # the spans of one answer
        answer = ", ".join(_text(span, where, "an answer's span").strip() for span in answer)
    return _text(answer, where, "answer")


def _text(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {field} is {_kind(value)}; expected a text that is not empty")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return "empty" if value == "" else f"a {type(value).__name__}"
