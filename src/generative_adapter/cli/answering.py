"""Answers questions by one of three methods and counts what each answer costs; `ask` and `demo` share it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generative_adapter.contextualizer import GenerativeAdapter
    from generative_adapter.generator.memory import ContextMemory


class Method(str, Enum):
    """How the model gets to use a context."""

    ADAPTER = "adapter"
    CLOSED_BOOK = "closed-book"
    PROMPT = "prompt"


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question, its answer and what the answer cost.

    Attributes:
        question: as asked.
        answer: as the model gave it.
        prompt_tokens: tokens the model read to answer it.
        generated_tokens: tokens the model wrote.
        seconds: wall-clock time of this answer.
    """

    question: str
    answer: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def answer_questions(
    model: GenerativeAdapter,
    questions: Sequence[str],
    *,
    memory: ContextMemory | None = None,
    context: str | None = None,
    max_new_tokens: int,
) -> list[AnsweredQuestion]:
    """Answers questions one at a time, so that each answer's seconds are its own.

    Args:
        model: answers them.
        questions: any number.
        memory: answer from the adapter of this memory; at most one of `memory` and `context` is given.
        context: answer with this text in the prompt; with neither, closed-book.
        max_new_tokens: longest answer.
    """
    answered = []
    for question in questions:
        start = time.perf_counter()
        contexts = None if context is None else [context]
        answer = model.answer([question], memory, contexts=contexts, max_new_tokens=max_new_tokens)[0]
        seconds = round(time.perf_counter() - start, 4)
        answered.append(
            AnsweredQuestion(question, answer.text, answer.num_prompt_tokens, answer.num_generated_tokens, seconds)
        )
    return answered


def count_tokens(model: GenerativeAdapter, text: str) -> int:
    """Tokens of a text, without the special ones."""
    return len(model.base.tokenizer(text, add_special_tokens=False)["input_ids"])
