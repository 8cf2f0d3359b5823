"""Recall of held-out facts by a generator, beside closed-book, another context's adapter and shuffled words.

    python benchmarks/facts_recall.py [--generator FILE] [--contexts 100] [--facts 4] [--split held_out] [--json FILE]
    python benchmarks/facts_recall.py --data benchmarks/handwritten_facts.jsonl

Each context states `--facts` facts in plain sentences, with names, wordings and half of the attributes never trained
on; every fact is asked for once. With `--data` the contexts and questions are those of a file: 25 short texts with 100
questions, written by hand, come with it. An answer is right when it equals an accepted one after SQuAD's normalisation
(case, punctuation, articles). Nothing of the context is in the prompt, but for "full_context": the same base model
with the whole context in its prompt. It answers in sentences, so "full_context_contains" and "adapter_contains" count
answers that contain an accepted one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generative_adapter import ContextMemory, GenerativeAdapter
from generative_adapter.data.facts import SPLITS, facts_evaluation_set
from generative_adapter.data.records import Record, read_records

BATCH = 32


def normalized(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single blanks."""
    text = "".join(" " if character in string.punctuation else character for character in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def recall(
    model: GenerativeAdapter,
    records: Sequence[Record],
    memories: Sequence[ContextMemory] | None,
    *,
    in_prompt: bool = False,
) -> tuple[float, list[dict[str, Any]]]:
    """Share of questions answered exactly, with record i answered under memory i; and every answer.

    With `in_prompt` the context itself is in the prompt, and answers may be longer.
    """
    asked = [(index, question) for index, record in enumerate(records) for question in record.questions]
    rows = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        answers = model.answer(
            [question.question for _, question in batch],
            None if memories is None else [memories[index] for index, _ in batch],
            contexts=[records[index].context for index, _ in batch] if in_prompt else None,
            max_new_tokens=48 if in_prompt else 16,
        )
        for (_, question), answer in zip(batch, answers, strict=True):
            given, accepted = normalized(answer.text), {normalized(each) for each in question.answers}
            rows.append(
                {
                    "question": question.question,
                    "expected": question.answers[0],
                    "answer": answer.text,
                    "right": given in accepted,
                    "contains": any(f" {each} " in f" {given} " for each in accepted),
                }
            )
    return sum(row["right"] for row in rows) / len(rows), rows


def shuffled(text: str) -> str:
    """The same words in another order."""
    words = text.split()
    random.Random(text).shuffle(words)
    return " ".join(words)


def measure(model: GenerativeAdapter, records: Sequence[Record]) -> dict:
    """Exact match of the adapter, closed-book, another context's adapter, that of shuffled words, and prompting."""
    started = time.perf_counter()
    memories = [model.contextualize(record.context) for record in records]
    seconds = time.perf_counter() - started
    adapter, rows = recall(model, records, memories)
    prompted, prompted_rows = recall(model, records, None, in_prompt=True)
    return {
        "num_contexts": len(records),
        "num_questions": sum(len(record.questions) for record in records),
        "adapter": adapter,
        "closed_book": recall(model, records, None)[0],
        "other_adapter": recall(model, records, memories[1:] + memories[:1])[0],
        "shuffled_adapter": recall(model, records, [model.contextualize(shuffled(r.context)) for r in records])[0],
        "full_context": prompted,
        "adapter_contains": sum(row["contains"] for row in rows) / len(rows),
        "full_context_contains": sum(row["contains"] for row in prompted_rows) / len(rows),
        "contextualize_seconds": seconds / len(records),
        "answers": rows,
        "full_context_answers": prompted_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator")
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--split", choices=SPLITS, default="held_out")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", type=Path, help="contexts with questions instead of synthetic facts")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data:
        records, name = list(read_records(given.data)), given.data.name
    else:
        records = facts_evaluation_set(given.contexts, num_facts=given.facts, split=given.split, seed=given.seed)
        name = f"{given.split}, {given.facts} facts a context"
    result = {"data": name, **measure(GenerativeAdapter.from_pretrained(given.generator), records)}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print({key: value for key, value in result.items() if not key.endswith("answers")})


if __name__ == "__main__":
    main()
