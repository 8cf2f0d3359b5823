"""Takes the questions about single sentences (relation extraction, MultiRC) out of natural instructions.

    python scripts/questions/instruction_questions.py ../shared/data/instructions/natural_instructions.jsonl.zst \
        --output runs/instruction-questions.jsonl

Three of the tasks hold a sentence, a question and its answer; kept are those whose answer stands in the sentence. A
line of the output is `{"context", "qa": [{"question", "answers"}]}`, as recipes read it.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import zstandard

_ROW = re.compile(r"Context : (?P<context>.*?)\s*\n(?P<kind>Answer|Question) : (?P<given>.*)", re.DOTALL)
_SENTENCE = re.compile(r"Sentence: (?P<context>.*?)\s*\nQuestion: (?P<question>.*)", re.DOTALL)
_RELATIONS = ("task1326_qa_zre", "task1327_qa_zre")
_SENTENCES = "subtask051_multirc_correct_answer_single_sentence"


def pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """(context, question, answer) of the tasks' rows; those of relations give one of the last two each."""
    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
            task = json.loads(line)
            for instance in task["instances"] if task["task"] == _SENTENCES else ():
                if match := _SENTENCE.fullmatch(instance["input"].strip()):
                    context, answers = match["context"].strip(), [each.strip(" .") for each in instance["output"]]
                    yield context, match["question"].strip(), next((each for each in answers if each in context), "")
            for instance in task["instances"] if task["task"].startswith(_RELATIONS) else ():
                match = _ROW.fullmatch(instance["input"].strip())
                if match is None:
                    continue
                given, written = match["given"].strip(), instance["output"][0].strip()
                question, answer = (written, given) if match["kind"] == "Answer" else (given, written)
                yield match["context"].strip(), question, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("instructions", type=Path, help="tasks with their instances, JSON Lines, zstd")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    asked: dict[str, dict[str, str]] = {}
    for context, question, answer in pairs(arguments.instructions):
        if answer and answer in context:
            asked.setdefault(context, {})[question] = answer
    with arguments.output.open("w", encoding="utf-8") as file:
        for context, questions in asked.items():
            qa = [{"question": question, "answers": [answer]} for question, answer in questions.items()]
            file.write(json.dumps({"context": context, "qa": qa}, ensure_ascii=False) + "\n")
    print(f"{len(asked)} sentences, {sum(map(len, asked.values()))} questions")


if __name__ == "__main__":
    main()
