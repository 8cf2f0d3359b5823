"""Fine-tunes the base model to answer questions about a text in its prompt: prompting that knows how answers look.

    torchrun --nproc-per-node 2 scripts/questions/train_reader.py --base BASE_FOLDER --output runs/reader \
        ../shared/data/squad/train-subset-v1.1.json.zst runs/conversation-questions.jsonl

BASE_FOLDER is a plain Hugging Face model (`genadapter export --base` writes one). How it is trained:
`timed_tuning`. The prompt is the wording "question and answer" of `genadapter eval`, so that the result is a baseline:
`genadapter eval document-qa --base-model runs/reader --methods full-context-cached`. All questions about a text stand
behind it, one after the other, each with its answer, in another order in every epoch; the first of them is answered as
in the evaluation. Texts are those of the files, and some of them several joined, so that longer ones occur.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timed_tuning import Example, parser_for, tune

from generative_adapter import PromptConfig
from generative_adapter.base_model.prompts import answer_ids, plain_ids, start_ids
from generative_adapter.data.records import read_records

_HELD_OUT = 60
_MOST_QUESTIONS = 8
_PROMPT = PromptConfig(question="Question: {question}\n\nAnswer:", end="\n")


@dataclass
class Text:
    """A text with questions.

    Attributes:
        context: the text.
        asked: questions and answers.
        rng: orders them.
    """

    context: str
    asked: Sequence[tuple[str, str]]
    rng: random.Random


def texts(paths: Sequence[Path], joined_share: float, most_characters: int, rng: random.Random) -> list[Text]:
    """The texts of some files, shuffled; a share of them joined with those after them while there is room."""
    found = []
    for path in paths:
        for record in read_records(path):
            if record.context and record.questions:
                found.append((record.context, [(each.question, each.answers[0]) for each in record.questions]))
    rng.shuffle(found)
    made: list[Text] = []
    while found:
        context, asked = found.pop()
        join = rng.random() < joined_share
        while join and found and len(context) + len(found[-1][0]) < most_characters:
            other, more = found.pop()
            context, asked = f"{context}\n\n{other}", [*asked, *more]
        made.append(Text(context, asked, random.Random(len(made))))
    return made


def prompt_ids(tokenizer: Any, context: str, question: str, ends: str = "\n\n") -> list[int]:
    """The text with a question behind it, as it is asked first; without a text, a further question after `ends`."""
    assert _PROMPT.question is not None
    before = [*start_ids(tokenizer), *plain_ids(tokenizer, context)] if context else []
    return before + plain_ids(tokenizer, ends + _PROMPT.question.replace("{question}", question))


def example(tokenizer: Any, text: Text) -> Example:
    """The text, then some of its questions, each with the answer that is learned and the line's end."""
    ids: list[int] = []
    learnt: list[int] = []
    for question, answer in text.rng.sample(text.asked, min(_MOST_QUESTIONS, len(text.asked))):
        # An answer ends with the first of the two line ends before the next question.
        ids += prompt_ids(tokenizer, "", question, "\n") if ids else prompt_ids(tokenizer, text.context, question)
        own = answer_ids(tokenizer, _PROMPT, answer)
        learnt += range(len(ids), len(ids) + len(own))
        ids += own
    return Example(ids, learnt)


def main() -> None:
    parser = parser_for((__doc__ or "").splitlines()[0], "reader", per_step=16)
    parser.add_argument("texts", nargs="+", type=Path, help="files that `genadapter train` reads as questions")
    parser.add_argument("--joined-share", type=float, default=0.3, help="part of the texts that are several joined")
    parser.add_argument("--most-characters", type=int, default=3000, help="of joined texts")
    arguments = parser.parse_args()
    found = texts(arguments.texts, arguments.joined_share, arguments.most_characters, random.Random(0))
    held_out = min(_HELD_OUT, len(found) // 4)
    tune(arguments, found[held_out:], found[:held_out], example)


if __name__ == "__main__":
    main()
