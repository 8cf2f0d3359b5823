"""Writes questions about passages of plain text with a writer that `train_writer.py` trained, by vLLM.

    python scripts/questions/write_questions.py --writer runs/question-writer --passages 8000 \
        --output runs/questions.jsonl ../shared/data/pretrain/train-00.jsonl.zst ...

Answers are chosen by rules and the writer asks for each, or it chooses them too (`--answers writer`). Runs in an
environment with vLLM, this package (`make test-engines` makes one in .venv-vllm) and zstandard. A line of the output is
`{"context", "title", "source", "qa": [{"question", "answers"}]}`, the format that recipes read with `kind: questions`.
A run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from generative_adapter.data.cloze_answers import STOP_WORDS, candidates_in
from generative_adapter.data.paragraphs import sentences

HEADING = "\n\nQuestions and answers:\n"
_LEAST_WORDS, _MOST_WORDS = 60, 170
_BATCH = 128
_LIST_TOKENS, _QUESTION_TOKENS = 130, 36


def passages_of(text: str, most: int) -> list[str]:
    """The first runs of paragraphs of a text, of 60 to 170 words each; headings go with none of them."""
    found: list[str] = []
    run: list[str] = []
    for paragraph in text.split("\n"):
        words = len(paragraph.split())
        if words < 12 or not paragraph.rstrip().endswith((".", "!", "?", '"')):
            continue
        so_far = sum(len(each.split()) for each in run)
        if run and so_far + words > _MOST_WORDS:
            run, so_far = [], 0
        run.append(" ".join(paragraph.split()))
        if _LEAST_WORDS <= so_far + words <= _MOST_WORDS:
            found.append("\n".join(run))
            run = []
        elif so_far + words > _MOST_WORDS:
            run = []
        if len(found) == most:
            break
    return found


def documents(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The documents of JSON Lines files, zstd."""
    for path in paths:
        with path.open("rb") as file:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
                yield json.loads(line)


def choose(paths: list[Path], num_passages: int, per_document: int) -> list[dict[str, str]]:
    """Passages of encyclopedia articles (nine of ten) and textbooks; several of one article where it is long."""
    rng = random.Random(0)
    chosen: list[dict[str, str]] = []
    for document in documents(paths):
        source = document["source"]
        if not source.startswith(("wiki", "openstax")):
            continue
        found = passages_of(document["text"], 40 if source.startswith("openstax") else per_document)
        if source.startswith("openstax") and len(found) > per_document:
            found = rng.sample(found, per_document)
        if len(found) < 2 and rng.random() < 0.7:
            continue
        chosen += [{"context": each, "title": document.get("title", ""), "source": source} for each in found]
    rng.shuffle(chosen)
    return chosen[:num_passages]


_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_NUMBER_WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "dozen",
    "hundred",
    "thousand",
    "million",
]


def of_one_kind(question: str, answer: str) -> bool:
    """Whether an answer can be one to the question: a time to "when", a number to "how many", a name to "who".

    No word of the answer may stand in the question but short ones: those are mostly questions that went wrong.
    """
    asked = question.lower()
    words = set(re.findall(r"\w+", asked))
    if any(len(word) > 3 and word in words for word in re.findall(r"\w+", answer.lower())):
        return False
    has_digit = any(each.isdigit() for each in answer)
    if asked.startswith("when ") or "what year" in asked or "what date" in asked:
        return has_digit or any(month in answer for month in _MONTHS) or "century" in answer
    if "how many" in asked or "how much" in asked:
        return has_digit or any(word in answer.lower().split() for word in _NUMBER_WORDS)
    if asked.startswith(("who ", "whose ", "whom ")):
        return (answer[:1].isupper() and not has_digit) or answer.startswith(("the ", "a ", "his ", "her "))
    return True


_LINE = re.compile(r"^- (?P<answer>[^|\n]+) \| (?P<question>[^|\n]+\?)$")


def read_pairs(passage: str, written: str) -> list[dict[str, Any]]:
    """The questions of a list whose answers stand in the passage and not in the question."""
    pairs: list[dict[str, Any]] = []
    seen: set[str] = set()
    for line in written.split("\n"):
        match = _LINE.match(line)
        if not match:
            continue
        answer, question = match["answer"].strip(), match["question"].strip()
        stands = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage)
        fits = len(answer.split()) <= 10 and 4 <= len(question.split()) <= 35
        if stands and fits and of_one_kind(question, answer) and question not in seen:
            seen.add(question)
            pairs.append({"question": question, "answers": [answer]})
    return pairs


_LEFT = re.compile(r"\b(?:[Tt]he|an?|its|his|her|their)(?P<between>(?: [\w-]+){0,3}) $")
_BEHIND = rf"(?=[,.;:!?)]|$| (?:{'|'.join(sorted(STOP_WORDS))})\b)"
_NOUNS = re.compile(rf"(?: [a-z][a-z-]{{3,}}){{1,2}}?{_BEHIND}")
_OF = re.compile(rf" of (?:the |an? |its |his |her |their )?[\w-]+(?: [A-Za-z][\w-]+){{0,3}}?{_BEHIND}")
_BEFORE_NOUNS = re.compile(r"(?:\d|[A-Z]\w+(?:an|ish|ese|ern))$")  # a number, or an adjective as far as can be told


def longer(sentence: str, start: int, end: int) -> tuple[int, int]:
    """The noun phrase around a part of a sentence: "Monday" may become "the first Monday of the month"."""
    first = start
    before = _LEFT.search(sentence[:start])
    if before and not STOP_WORDS & set(before["between"].lower().split()):
        first = before.start()
    if _BEFORE_NOUNS.search(sentence[start:end]) and (nouns := _NOUNS.match(sentence, end)):
        end = nouns.end()
    if of := _OF.match(sentence, end):
        end = of.end()
    return first, end


def chosen_answers(passage: str, most: int, rng: random.Random, longer_share: float = 0.0) -> list[str]:
    """Answers in a passage that can be asked for, found by rules: from every sentence one before any second one.

    Args:
        passage: the text.
        most: answers.
        rng: chooses among them.
        longer_share: how many of them take the words around them along that belong to them.
    """
    waiting = []
    for sentence in sentences(passage):
        spans = [(each.start, each.end) for each in candidates_in(sentence)]
        spans = [longer(sentence, *span) if longer_share and rng.random() < longer_share else span for span in spans]
        found = [sentence[slice(*span)] for span in spans]
        rng.shuffle(found)
        waiting.append(found)
    rng.shuffle(waiting)
    answers: list[str] = []
    while any(waiting) and len(answers) < most:
        for found in waiting:
            if found and (answer := found.pop()) not in answers:
                answers.append(answer)
    return answers[:most]


def requests_for(
    passages: list[dict[str, str]], most: int, rng: random.Random | None, longer_share: float = 0.0
) -> list[tuple[int, str]]:
    """What the writer is to go on from: number of the passage and the beginning of its list.

    Args:
        passages: with `context`.
        most: answers of a passage.
        rng: chooses answers; None: the writer does, a whole list at once.
        longer_share: of `chosen_answers`.
    """
    if rng is None:
        return [(number, "") for number in range(len(passages))]
    chosen = [chosen_answers(each["context"], most, rng, longer_share) for each in passages]
    return [(number, f"- {answer} |") for number, answers in enumerate(chosen) for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path, help="documents with text, title and source, JSON Lines, zstd")
    parser.add_argument("--writer", required=True, help="folder that train_writer.py wrote")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--passages", type=int, default=8000)
    parser.add_argument("--per-document", type=int, default=4, help="most passages of one document")
    parser.add_argument(
        "--answers", choices=("rules", "writer"), default="rules", help="who chooses what is asked for in a passage"
    )
    parser.add_argument("--per-passage", type=int, default=6, help="most answers that rules choose in a passage")
    parser.add_argument(
        "--longer-share", type=float, default=0.0, help="part of these answers that become whole noun phrases"
    )
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--max-seconds", type=float, default=3600)
    arguments = parser.parse_args()

    start = time.monotonic()
    wanted = choose(arguments.texts, arguments.passages, arguments.per_document)
    done = arguments.output.with_suffix(".done")
    at = int(done.read_text()) if done.exists() else 0
    print(f"{len(wanted)} passages, {at} done", flush=True)

    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # of an environment of its own

    by_rules = arguments.answers == "rules"
    writer = LLM(
        arguments.writer, dtype="bfloat16", max_model_len=768, max_num_seqs=128, enable_prefix_caching=by_rules, seed=1
    )
    # No top_p: on a CPU vLLM sorts the whole vocabulary for every token of it, which takes longer than the model does.
    sampling = SamplingParams(
        temperature=arguments.temperature,
        max_tokens=_QUESTION_TOKENS if by_rules else _LIST_TOKENS,
        stop=["\n"] if by_rules else None,
    )
    kept = asked = 0
    while at < len(wanted) and time.monotonic() - start < arguments.max_seconds:
        batch = wanted[at : at + _BATCH]
        rng = random.Random(at) if by_rules else None
        begun = requests_for(batch, arguments.per_passage, rng, arguments.longer_share)
        outputs = writer.generate(
            [batch[number]["context"] + HEADING + text for number, text in begun], sampling, use_tqdm=False
        )
        lists = [""] * len(batch)
        for (number, text), output in zip(begun, outputs, strict=True):
            lists[number] += text + output.outputs[0].text + "\n"
        with arguments.output.open("a", encoding="utf-8") as file:
            for passage, written in zip(batch, lists, strict=True):
                asked += written.count(" | ")
                pairs = read_pairs(passage["context"], written)
                kept += len(pairs)
                if pairs:
                    file.write(json.dumps(passage | {"qa": pairs}, ensure_ascii=False) + "\n")
        at += len(batch)
        done.write_text(str(at))
        print(f"{at} passages, {kept} questions of {asked} kept, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
