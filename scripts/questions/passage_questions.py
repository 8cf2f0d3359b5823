"""Adds written questions to files of passages that have few: those of SQuAD's training set, for instance.

    python scripts/questions/passage_questions.py scripts/questions/passages/*.jsonl \
        --passages train-extra.jsonl.zst --output runs/squad-questions.jsonl

The questions name their passage by a digest of its text alone, so they are of use to whoever has the passages
(scripts/questions/passages/README.md). A line of the output is `{"context", "title", "source", "qa": [{"question",
"answers"}]}`, as recipes read it: every passage, whether questions were written about it or not, with its own questions
first. With `--written-only` the written questions alone are there: where the others are of rules, such as cloze ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from generative_adapter.data.records import Record, read_records

_DIGITS = 16
_LONGEST_ANSWER = 9  # words
_NO_WORD = re.compile(r"\W+")
Written = Mapping[str, Sequence[tuple[str, str]]]


class WrittenQuestionError(ValueError):
    """A written question that its passage doesn't answer, or a line that can't be read."""


def digest(context: str) -> str:
    """What names a passage: 16 hexadecimal digits of the SHA-256 of its words, however they are spaced."""
    return hashlib.sha256(" ".join(context.split()).encode()).hexdigest()[:_DIGITS]


def read_written(paths: Sequence[Path]) -> dict[str, list[tuple[str, str]]]:
    """Questions with their answers, by the digest of their passage.

    Raises:
        WrittenQuestionError: a line is something else than `{"passage", "qa": [[question, answer], ...]}`.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(paths):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                found.setdefault(row["passage"], []).extend((question, answer) for question, answer in row["qa"])
            except (ValueError, TypeError, KeyError) as error:
                raise WrittenQuestionError(f'{path}: line {number} is no {{"passage", "qa"}}: {error}') from error
    return found


def complaint(question: str, answer: str, context: str) -> str | None:
    """What is wrong with a written question; None for nothing."""
    if not question.endswith("?"):
        return "the question has no question mark"
    if not answer or answer not in context:
        return "the answer doesn't stand in the passage"
    if len(answer.split()) > _LONGEST_ANSWER:
        return f"the answer is longer than {_LONGEST_ANSWER} words"
    if _words(answer).strip() and _words(answer) in _words(question):
        return "the question holds its answer"
    return None


def _words(text: str) -> str:
    return f" {_NO_WORD.sub(' ', text.lower()).strip()} "


def with_written(records: Iterable[Record], written: Written) -> Iterator[dict[str, Any]]:
    """Passages with their own questions and those that were written; one that is asked already is left out.

    Raises:
        WrittenQuestionError: its passage doesn't answer a question.
    """
    for record in records:
        qa = [{"question": each.question, "answers": list(each.answers)} for each in record.questions]
        asked = {_words(each.question) for each in record.questions}
        for question, answer in written.get(digest(record.context), ()):
            if wrong := complaint(question, answer, record.context):
                raise WrittenQuestionError(f"{digest(record.context)}: {question!r}, {answer!r}: {wrong}")
            if _words(question) not in asked:
                asked.add(_words(question))
                qa.append({"question": question, "answers": [answer]})
        yield {"context": record.context, "title": record.title, "source": record.source, "qa": qa}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="+", type=Path, help="files of written questions")
    parser.add_argument("--passages", nargs="+", required=True, type=Path, help="files with the passages")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument(
        "--written-only", action="store_true", help="leave out the passages' own questions, and passages without others"
    )
    arguments = parser.parse_args()

    written = read_written(arguments.questions)
    records = [record for path in arguments.passages for record in read_records(path)]
    if arguments.written_only:
        records = [replace(record, questions=()) for record in records if digest(record.context) in written]
    rows = list(with_written(records, written))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    there = {digest(record.context) for record in records}
    before, after = sum(len(record.questions) for record in records), sum(len(row["qa"]) for row in rows)
    print(f"{arguments.output}: {len(rows)} passages, {after} questions, {after - before} of them written")
    if missing := written.keys() - there:
        print(f"{len(missing)} of {len(written)} passages with written questions aren't in these files")


if __name__ == "__main__":
    main()
