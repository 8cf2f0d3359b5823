"""Closed-book: the plain base model answers without the context. The floor that every other method must beat."""

from __future__ import annotations

from collections.abc import Sequence

from generative_adapter.base_model.costs import base_sizes
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.methods.answering import Batching, answer_prompts, answering_flops
from generative_adapter.methods.prompting import answer_form, prompt_ids
from generative_adapter.methods.protocol import Answer, Context, Costs, Query, Wording
from generative_adapter.methods.settings import MethodSettings
from generative_adapter.methods.text_losses import text_losses


class ClosedBook:
    """The base model alone.

    Args:
        base: the base model.
        batching: how many queries run together.
    """

    name = "closed-book"

    def __init__(self, base: BaseModel, *, batching: Batching | None = None) -> None:
        self.base = base
        self.batching = batching
        self._sizes = base_sizes(base.model)

    def take_in(self, context: Context) -> None:
        """Nothing is kept."""

    def answer(self, state: None, queries: Sequence[Query], wording: Wording, max_new_tokens: int) -> list[Answer]:
        """Answers to the queries in the wording's closed prompt."""
        tokenizer = self.base.tokenizer
        prompts = [prompt_ids(tokenizer, wording, query.question) for query in queries]
        form = answer_form(tokenizer, wording)
        return answer_prompts(self.base, prompts, queries, form, max_new_tokens, batching=self.batching)

    def text_losses(self, state: None, texts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """See `protocol.PredictsText`; those of the plain base model."""
        return text_losses(self.base, texts)

    def costs(self, state: None, answers: Sequence[Answer]) -> Costs:
        """Answering only; formulas in `answering`."""
        return Costs(answering_flops=answering_flops(self._sizes, answers))


def build(base: BaseModel, settings: MethodSettings) -> ClosedBook:
    """`closed-book`."""
    return ClosedBook(base, batching=settings.batching)
