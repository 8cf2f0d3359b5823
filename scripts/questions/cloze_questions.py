"""Adds questions made by rules from a passage's own sentences to files of questions about passages.

    python scripts/questions/cloze_questions.py --per-passage 2 --output runs/cloze-questions.jsonl \
        runs/filtered-questions.jsonl --passages runs/rule-questions.jsonl

Noisy cloze questions (`generative_adapter.data.cloze`; Lewis et al. 2019, arXiv:1906.04980) use a sentence's own words,
of which there are many more than people ask with, so a lookup learns to match words whatever they are. Their answers
are always right. Passages that `--passages` names beside get them alone: those, for instance, whose written questions
were all left out, and so do `--num-passages` of the `--texts`, chosen as `write_questions.py` chooses. Output: the
format that recipes read with `kind: questions`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from write_questions import choose

from generative_adapter.data.cloze import cloze_questions


def rows_of(
    questions: Sequence[Path], passages: Sequence[Path], chosen: Sequence[dict[str, str]] = ()
) -> Iterator[dict[str, Any]]:
    """Lines of the first files, then those of the others and `chosen` about other texts, without their questions.

    Lines about one text become one.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in questions:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            known = rows.setdefault(row["context"], row | {"qa": []})
            asked = {each["question"] for each in known["qa"]}
            known["qa"] += [each for each in row["qa"] if each["question"] not in asked]
    for path in passages:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.setdefault(row["context"], row | {"qa": []})
    for row in chosen:
        rows.setdefault(row["context"], row | {"qa": []})
    yield from rows.values()


def with_cloze(row: dict[str, Any], per_passage: int, rng: random.Random) -> dict[str, Any]:
    """A line with so many cloze questions more, none for an answer that it asks for already."""
    answers = {answer for each in row["qa"] for answer in each["answers"]}
    made = cloze_questions(row["context"], rng, per_passage + len(answers))
    new = [each for each in made if answers.isdisjoint(each.answers)][:per_passage]
    return row | {"qa": [*row["qa"], *({"question": each.question, "answers": list(each.answers)} for each in new)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="*", type=Path, help="JSON Lines: {context, qa: [{question, answers}]}")
    parser.add_argument("--passages", nargs="*", type=Path, default=[], help="likewise; their questions are left out")
    parser.add_argument("--texts", nargs="*", type=Path, default=[], help="documents, JSON Lines, zstd")
    parser.add_argument("--num-passages", type=int, default=4000, help="passages of the texts")
    parser.add_argument("--per-document", type=int, default=4, help="most passages of one document of the texts")
    parser.add_argument("--per-passage", type=int, default=2, help="cloze questions of a passage")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.questions or arguments.passages or arguments.texts):
        parser.error("nothing to make questions from: name files of questions, --passages or --texts")

    chosen = choose(arguments.texts, arguments.num_passages, arguments.per_document)
    rng = random.Random(arguments.seed)
    before = after = kept = 0
    with arguments.output.open("w", encoding="utf-8") as file:
        for row in rows_of(arguments.questions, arguments.passages, chosen):
            before += len(row["qa"])
            row = with_cloze(row, arguments.per_passage, rng)
            after += len(row["qa"])
            if row["qa"]:
                kept += 1
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{kept} passages, {before} questions and {after - before} cloze questions more")


if __name__ == "__main__":
    main()
