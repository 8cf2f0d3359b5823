"""Trains a writer of questions: passage in, answers and questions about it out, from SQuAD's training paragraphs.

    torchrun --nproc-per-node 2 scripts/questions/train_writer.py --base BASE_FOLDER --output runs/question-writer \
        --squad ../shared/data/squad/train-subset-v1.1.json.zst --max-seconds 1500

BASE_FOLDER is a plain Hugging Face model (`genadapter export --base` writes one). How it is trained:
`timed_tuning`. `write_questions.py` uses the result.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import zstandard
from timed_tuning import Example, parser_for, tune

HEADING = "\n\nQuestions and answers:\n"
_HELD_OUT = 40


def listed(answer: str, question: str) -> str:
    """One line of the list that the writer writes."""
    return f"- {answer} | {question}\n"


def read_paragraphs(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Paragraphs of a file in SQuAD's format with (answer, question) pairs, each answer once."""
    with path.open("rb") as file:
        data = json.load(io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"))
    paragraphs = []
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            pairs: dict[str, str] = {}
            for each in paragraph["qas"]:
                if each["answers"]:
                    pairs.setdefault(each["answers"][0]["text"].strip(), each["question"].strip())
            if len(pairs) >= 3:
                paragraphs.append((paragraph["context"].strip(), list(pairs.items())))
    return paragraphs


def example(tokenizer: Any, paragraph: tuple[str, list[tuple[str, str]]]) -> Example:
    """A paragraph, then the list that is learned, with its end."""
    context, pairs = paragraph
    prompt = tokenizer(context + HEADING).input_ids
    written = [*tokenizer("".join(listed(*pair) for pair in pairs)).input_ids, tokenizer.eos_token_id]
    return Example([*prompt, *written], range(len(prompt), len(prompt) + len(written)))


def main() -> None:
    parser = parser_for((__doc__ or "").splitlines()[0], "writer", per_step=16)
    parser.add_argument("--squad", type=Path, required=True, help="training paragraphs in SQuAD's format, zstd")
    arguments = parser.parse_args()
    paragraphs = read_paragraphs(arguments.squad)
    random.Random(0).shuffle(paragraphs)
    tune(arguments, paragraphs[_HELD_OUT:], paragraphs[:_HELD_OUT], example)


if __name__ == "__main__":
    main()
