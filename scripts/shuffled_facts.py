"""Contexts of synthetic facts with their words in another order, whose questions are answered "not stated".

python scripts/shuffled_facts.py runs/shuffled-facts.jsonl --contexts 3000

A generator trained on stated facts alone learns to answer with whatever in a text is of the right kind; these records,
as a `questions` source of a few per cent, teach it that the words alone are not the fact. Training side only.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generative_adapter.data.facts import sample_facts_record

ANSWER = "not stated"


def shuffled_records(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Records of 2 to 8 facts of the training split, half of them plain sentences, words in random order."""
    rng = random.Random(seed)
    for _ in range(count):
        style = "plain" if rng.random() < 0.5 else None
        record = sample_facts_record(rng, num_facts=rng.randint(2, 8), num_questions=5, split="train", style=style)
        words = record.context.split()
        rng.shuffle(words)
        questions = [{"question": question.question, "answers": [ANSWER]} for question in record.questions]
        yield {"context": " ".join(words), "qa": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--contexts", type=int, default=3000)
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with given.output.open("w", encoding="utf-8") as file:
        for record in shuffled_records(given.contexts):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
