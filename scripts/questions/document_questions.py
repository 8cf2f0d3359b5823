"""Makes documents with questions out of templates: meeting notes, chats, news, manuals and other everyday texts.

    python scripts/questions/document_questions.py scripts/questions/documents/*.jsonl \
        --variants 4 --output runs/document-questions.jsonl

A template is a text about made-up people, places and things in which names, numbers, dates and other facts are slots,
and questions about these in several wordings (scripts/questions/documents/README.md). Each variant of it fills the
slots with other values, so that only the text tells the answer and not what was learned of the variant before. A line
of the output is `{"context", "qa": [{"question", "answers"}]}`, as recipes read it. One template of ten (`--part`) is
kept for held-out documents, so that no variant of it is trained on.

With `--unrelated scripts/questions/general-questions.jsonl` each document is also asked questions that have nothing to
do with it: their answers are to stay what the base model knows.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

_SLOT = re.compile(r"\{\{(\w+)\}\}")
_HELD_OUT_OF = 10  # the last of so many templates of a file
_DRAWS = 200
_LEAST_VALUES, _LEAST_QUESTIONS, _LEAST_WORDINGS = 4, 8, 2
_WORDS = (60, 400)  # of a document
_LONGEST_ANSWER = 10  # words
Part = Literal["training", "held-out", "all"]


class TemplateError(ValueError):
    """A template that can't be filled or whose questions its text doesn't answer."""


def fill(text: str, values: Mapping[str, str]) -> str:
    """A text with the values of its slots.

    Raises:
        TemplateError: it names a slot that has no values.
    """
    if missing := {name for name in _SLOT.findall(text) if name not in values}:
        raise TemplateError(f"no slot {sorted(missing)[0]!r}")
    return _SLOT.sub(lambda found: values[found[1]], text)


def variant(template: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One filling of a template, the same for the same number, with one wording of each question.

    Values that hold each other are not taken together, and answers stand in the text word for word.

    Raises:
        TemplateError: as `check` does.
    """
    rng = random.Random(f"{template['id']}/{number}")
    values = _values(template, number, rng)
    context = fill(template["text"], values)
    qa = []
    for at, each in enumerate(template["questions"]):
        wordings = each["wordings"]
        question = fill(wordings[(number + at) % len(wordings)], values)
        answers = [fill(answer, values) for answer in (each["answer"], *each.get("also", ()))]
        if not stands(answers[0], context):
            raise TemplateError(f"the answer {answers[0]!r} doesn't stand in the text")
        if stands(answers[0], question):
            raise TemplateError(f"the question {question!r} holds its answer")
        qa.append({"question": question, "answers": answers})
    rng.shuffle(qa)
    return {"context": context, "title": f"{template['id']} {number}", "source": template["kind"], "qa": qa}


def _values(template: Mapping[str, Any], number: int, rng: random.Random) -> dict[str, str]:
    """A value of each slot, each of them once in as many variants as there are values where that can be."""
    fixed = _SLOT.sub(" ", template["text"])
    orders = {name: random.Random(f"{template['id']}/{name}").sample(own, len(own)) for name, own in _slots(template)}
    for draw in range(_DRAWS):
        values = {name: own[number % len(own)] if draw == 0 else rng.choice(own) for name, own in orders.items()}
        taken = list(values.values())
        clash = any(_alike(one, other) for at, one in enumerate(taken) for other in taken[:at])
        if not clash and (draw > _DRAWS // 2 or not any(stands(value, fixed) for value in taken)):
            return values
    raise TemplateError("no values of its slots that differ from each other")


def _slots(template: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return sorted(template["slots"].items())


def _alike(one: str, other: str) -> bool:
    return stands(one, other) or stands(other, one)


def stands(answer: str, text: str) -> bool:
    """Whether a text holds an answer as whole words, written alike."""
    return answer in text and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def check(template: Mapping[str, Any]) -> None:
    """Tries many variants of a template.

    Raises:
        TemplateError: what is wrong with it, with its number.
    """
    try:
        _check(template)
    except (KeyError, TypeError, AttributeError) as error:
        raise TemplateError(f"{template.get('id', '?')}: {type(error).__name__} {error}") from error
    except TemplateError as error:
        raise TemplateError(f"{template['id']}: {error}") from error


def _check(template: Mapping[str, Any]) -> None:
    for name, values in template["slots"].items():
        if len(set(values)) < _LEAST_VALUES or not all(isinstance(each, str) and each.strip() for each in values):
            raise TemplateError(f"slot {name!r} needs {_LEAST_VALUES} different texts or more")
        if f"{{{{{name}}}}}" not in template["text"]:
            raise TemplateError(f"slot {name!r} isn't in the text")
    if len(template["questions"]) < _LEAST_QUESTIONS:
        raise TemplateError(f"{len(template['questions'])} questions; {_LEAST_QUESTIONS} or more are needed")
    for each in template["questions"]:
        if len(set(each["wordings"])) < _LEAST_WORDINGS:
            raise TemplateError(f"the question for {each['answer']!r} needs {_LEAST_WORDINGS} wordings or more")
        if not _SLOT.search(each["answer"]):
            raise TemplateError(f"the answer {each['answer']!r} holds no slot, so it is the same in every variant")
    for number in range(24):
        made = variant(template, number)
        if not _WORDS[0] <= len(made["context"].split()) <= _WORDS[1]:
            raise TemplateError(f"{len(made['context'].split())} words; {_WORDS[0]} to {_WORDS[1]} are wanted")
        for each in made["qa"]:
            if len(each["answers"][0].split()) > _LONGEST_ANSWER:
                raise TemplateError(f"the answer {each['answers'][0]!r} is longer than {_LONGEST_ANSWER} words")


def read_templates(paths: Sequence[Path], part: Part = "all") -> list[dict[str, Any]]:
    """The templates of some files that are trained on, that are held out, or all.

    Raises:
        TemplateError: a line is no JSON object, or a number is there twice.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(paths):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for number, line in enumerate(lines):
            try:
                template = dict(json.loads(line))
            except (json.JSONDecodeError, TypeError, ValueError) as error:
                raise TemplateError(f"{path}: line {number + 1} is no JSON object: {error}") from error
            held_out = number % _HELD_OUT_OF == _HELD_OUT_OF - 1
            if part == "all" or held_out == (part == "held-out"):
                found.append(template)
    ids = [each.get("id") for each in found]
    if twice := {each for each in ids if ids.count(each) > 1}:
        raise TemplateError(f"more than one template is called {sorted(map(str, twice))[0]}")
    return found


def add_unrelated(documents: Sequence[dict[str, Any]], questions: Sequence[Mapping[str, Any]], number: int) -> None:
    """Asks each document `number` questions more that it says nothing about, all of them about equally often."""
    order = random.Random(0).sample(range(len(questions)), len(questions))
    at = 0
    for document in documents:
        for _ in range(number):
            for _ in order:
                each = questions[order[at % len(order)]]
                at += 1
                if not any(stands(answer, document["context"]) for answer in each["answers"]):
                    document["qa"].append({"question": each["question"], "answers": each["answers"]})
                    break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("templates", type=Path, nargs="+", help="files of templates, one a line")
    parser.add_argument(
        "--output", type=Path, help="file of documents with questions; without it templates are checked"
    )
    parser.add_argument("--variants", type=int, default=4, help="documents made of each template")
    parser.add_argument("--part", choices=("training", "held-out", "all"), default="training")
    parser.add_argument("--unrelated", type=Path, help="questions that have nothing to do with the documents")
    parser.add_argument("--unrelated-per-document", type=int, default=2)
    arguments = parser.parse_args()
    templates = read_templates(arguments.templates, arguments.part if arguments.output else "all")
    wrong = 0
    for template in templates:
        try:
            check(template)
        except TemplateError as error:
            wrong += 1
            print(error)
    if wrong:
        raise SystemExit(f"{wrong} of {len(templates)} templates are wrong")
    print(f"{len(templates)} templates, {sum(len(each['questions']) for each in templates)} questions")
    if arguments.output is None:
        return
    made = [variant(template, number) for number in range(arguments.variants) for template in templates]
    random.Random(0).shuffle(made)
    if arguments.unrelated is not None:
        lines = arguments.unrelated.read_text(encoding="utf-8").splitlines()
        add_unrelated(made, [json.loads(line) for line in lines], arguments.unrelated_per_document)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made), encoding="utf-8")
    print(f"{arguments.output}: {len(made)} documents, {sum(len(each['qa']) for each in made)} questions")


if __name__ == "__main__":
    main()
