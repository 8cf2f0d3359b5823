"""Keeps the written questions whose answer a reader finds in the passage too (round-trip consistency), by vLLM.

    python scripts/questions/filter_questions.py --reader runs/reader --output runs/filtered-questions.jsonl \
        runs/rule-questions.jsonl runs/questions.jsonl

`train_reader.py` makes the reader. It answers each question with the passage in its prompt, and a question stays if the
token F1 of that answer and its own is at least `--least-f1` (Alberti et al. 2019, arXiv:1906.05416, ask for the same
answer). Runs where `write_questions.py` runs. Passages whose questions all go are left out. A run
that was cut short goes on where it stopped; several side by side take a part each (`--part 1/2`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train_reader import prompt_ids

from generative_adapter.evaluation.metrics import token_f1

_BATCH = 64  # passages
_ANSWER_TOKENS = 24
Reader = Callable[[Sequence[tuple[str, str]]], list[str]]


def lines_of(paths: Sequence[Path], part: int, parts: int) -> list[dict[str, Any]]:
    """Every `parts`-th line of some files, from line `part` on, counted from 1."""
    rows = [row for path in paths for row in path.read_text(encoding="utf-8").splitlines() if row.strip()]
    return [json.loads(row) for row in rows[part - 1 :: parts]]


def answered(rows: Sequence[dict[str, Any]], read: Reader, least_f1: float) -> list[dict[str, Any]]:
    """The rows with those of their questions to which the reader gives the answer that they have.

    Args:
        rows: `{"context", "qa": [{"question", "answers"}]}`, and anything else, which stays.
        read: answers pairs of a context and a question.
        least_f1: token F1 of both answers that is asked for.
    """
    read_answers = iter(read([(row["context"], each["question"]) for row in rows for each in row["qa"]]))
    kept = [
        row | {"qa": [each for each in row["qa"] if token_f1(next(read_answers), each["answers"]) >= least_f1]}
        for row in rows
    ]
    return [row for row in kept if row["qa"]]


def vllm_reader(folder: str) -> Reader:
    """Answers by a fine-tuned model, greedily, up to the line's end."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # of an environment of its own

    model = LLM(folder, dtype="bfloat16", max_model_len=1280, max_num_seqs=128, enable_prefix_caching=True)
    tokenizer = model.get_tokenizer()
    sampling = SamplingParams(temperature=0.0, max_tokens=_ANSWER_TOKENS, stop=["\n"])

    def read(pairs: Sequence[tuple[str, str]]) -> list[str]:
        prompts = [{"prompt_token_ids": prompt_ids(tokenizer, *pair)} for pair in pairs]
        return [each.outputs[0].text.strip() for each in model.generate(prompts, sampling, use_tqdm=False)]

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="+", type=Path, help="files that write_questions.py wrote")
    parser.add_argument("--reader", required=True, help="folder that train_reader.py wrote")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--least-f1", type=float, default=0.6, help="of the reader's answer and the question's own")
    parser.add_argument("--part", default="1/1", help="of the lines, for several runs side by side")
    parser.add_argument("--max-seconds", type=float, default=3600)
    arguments = parser.parse_args()

    start = time.monotonic()
    part, parts = map(int, arguments.part.split("/"))
    if not 1 <= part <= parts:
        parser.error(f"--part must be 1/N to N/N, got {arguments.part}")
    rows = lines_of(arguments.questions, part, parts)
    done = arguments.output.with_suffix(".done")
    at = int(done.read_text()) if done.exists() else 0
    print(f"{len(rows)} passages, {at} done", flush=True)
    read = vllm_reader(arguments.reader)
    kept = asked = 0
    while at < len(rows) and time.monotonic() - start < arguments.max_seconds:
        batch = rows[at : at + _BATCH]
        found = answered(batch, read, arguments.least_f1)
        asked += sum(len(row["qa"]) for row in batch)
        kept += sum(len(row["qa"]) for row in found)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        at += len(batch)
        done.write_text(str(at))
        print(f"{at} passages, {kept} questions of {asked} kept, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
