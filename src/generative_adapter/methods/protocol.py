"""What every method does: take in a context, answer queries about it, tell what that cost.

A method is one way to make a language model use a context: not at all (closed-book), in the prompt, in weights that are
fine-tuned, in an adapter that is generated. Leaves out: which contexts and queries there are (`evaluation.tasks`), and
how answers are judged (`evaluation.metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from generative_adapter.config import require


@dataclass(frozen=True)
class Context:
    """What a method is given once, before any query.

    Attributes:
        text: all of it, as it would stand in a prompt.
        documents: the documents it is made of, for methods that train on them; empty: the text is one.
        examples: demonstrations, (input, output), where the text is made of such.
    """

    text: str
    documents: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Query:
    """What is asked about a context.

    Attributes:
        question: without any wording around it.
        options: answers of which the likeliest is chosen, rather than one generated.
    """

    question: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wording:
    """How a task's queries are put.

    Attributes:
        name: of the wording, in results.
        closed: prompt of a query alone, with `{question}`.
        open: prompt of a query after its context, with `{context}` and `{question}`.
        chat: whether the prompt is a user's message in the tokenizer's chat template, where there is one.
        shots: answered queries of other contexts, (context, question, answer), put before the prompt in its wording.
    """

    name: str
    closed: str
    open: str
    chat: bool = True
    shots: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        require("{question}" in self.closed, f"wording {self.name!r}: closed must hold {{question}}")
        for field in ("{context}", "{question}"):
            require(field in self.open, f"wording {self.name!r}: open must hold {field}")


@dataclass(frozen=True)
class Answer:
    """What a method answered to one query.

    Attributes:
        text: the answer, or the chosen option.
        option_scores: mean log-probability of a token of each option; empty where the answer was generated.
        num_prompt_tokens: tokens that were read for this query alone.
        num_cached_tokens: tokens before them whose keys and values were at hand.
        num_new_tokens: tokens generated, or of all options together where they are scored.
        seconds: of wall time, this query's part of its batch.
    """

    text: str
    option_scores: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Costs:
    """What a method spends, by stated formulas (`base_model.costs`), in the paper's three phases.

    Attributes:
        training_flops: once, whatever the number of contexts (pretraining a generator, supervised fine-tuning);
            None: not recorded.
        contextualizing_flops: to take in one context.
        answering_flops: for one query, mean over the queries given.
        stored_floats: numbers that are kept of a context beyond the base model.
        stored_bytes: the same in bytes, as they are kept.
        contextualizing_seconds: measured.
    """

    training_flops: float | None = 0.0
    contextualizing_flops: float = 0.0
    answering_flops: float = 0.0
    stored_floats: int = 0
    stored_bytes: int = 0
    contextualizing_seconds: float = 0.0


class Method(Protocol):
    """One way to make a model use a context. States are the method's own and are never changed by answering."""

    @property
    def name(self) -> str:
        """Name on the command line and in results."""
        ...

    def take_in(self, context: Context) -> Any:
        """What the method keeps of a context: its state for `answer`."""
        ...

    def answer(self, state: Any, queries: Sequence[Query], wording: Wording, max_new_tokens: int) -> list[Answer]:
        """Answers to queries about the context of a state, by greedy decoding or, with options, by likelihood."""
        ...

    def costs(self, state: Any, answers: Sequence[Answer]) -> Costs:
        """What taking the context in and giving these answers cost."""
        ...


@runtime_checkable
class PredictsText(Protocol):
    """What a method may also do: say how well its model predicts any text while it has a context's state."""

    def text_losses(self, state: Any, texts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """-log P of each text, summed over its tokens, and the number of those.

        Args:
            state: of a context, from `take_in`.
            texts: token ids of each, without begin-of-sequence tokens, which a text is read behind and which are not
                predicted; where a tokenizer has none, a text's first token isn't predicted.
        """
        ...
