"""Full-context prompting: the context stands in the prompt, read with each query or once with its keys and values kept.

Both give the same answers, up to numerical ties. A context that doesn't fit loses its beginning (`prompting`). Leaves
out: anything that makes a context shorter but keeps its content.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from generative_adapter.base_model.costs import base_sizes, forward_flops
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_cache import CachedTokens, read_tokens
from generative_adapter.config import require
from generative_adapter.methods.answering import Batching, answer_prompts, answering_flops
from generative_adapter.methods.prompting import (
    RESERVE_TOKENS,
    answer_form,
    context_window,
    fitted_context,
    prompt_ids,
    shared_ids,
)
from generative_adapter.methods.protocol import Answer, Context, Costs, Query, Wording
from generative_adapter.methods.settings import MethodSettings


class FullContext:
    """The context is read with each query.

    Args:
        base: the base model.
        max_prompt_tokens: tokens that a prompt with its answer may have, where that is less than the model's positions.
        reserve_tokens: what a context that has to be cut leaves to question and answer at least.
        batching: how many queries run together.

    Raises:
        ConfigError: when a number is not positive.
    """

    name = "full-context"

    def __init__(
        self,
        base: BaseModel,
        *,
        max_prompt_tokens: int | None = None,
        reserve_tokens: int = RESERVE_TOKENS,
        batching: Batching | None = None,
    ) -> None:
        require(reserve_tokens >= 0, f"reserve_tokens must not be negative, got {reserve_tokens}")
        self.base = base
        self.room = context_window(base, max_prompt_tokens)
        self.reserve_tokens = reserve_tokens
        self.batching = batching
        self._sizes = base_sizes(base.model)

    def take_in(self, context: Context) -> str:
        """The text is kept as it is."""
        return context.text

    def answer(self, state: str, queries: Sequence[Query], wording: Wording, max_new_tokens: int) -> list[Answer]:
        """Answers to the queries in the wording's open prompt.

        Raises:
            ConfigError: when question, wording and shots leave no room for a context.
        """
        prompts = self._prompts(state, queries, wording, max_new_tokens)
        form = answer_form(self.base.tokenizer, wording, with_context=True)
        return answer_prompts(self.base, prompts, queries, form, max_new_tokens, batching=self.batching)

    def costs(self, state: str, answers: Sequence[Answer]) -> Costs:
        """Answering only, the context read each time; formulas in `answering`."""
        return Costs(answering_flops=answering_flops(self._sizes, answers))

    def _prompts(self, text: str, queries: Sequence[Query], wording: Wording, max_new_tokens: int) -> list[list[int]]:
        return [
            prompt_ids(
                self.base.tokenizer,
                wording,
                query.question,
                self._fitted(text, query.question, wording, max_new_tokens),
            )
            for query in queries
        ]

    def _fitted(self, text: str, question: str, wording: Wording, max_new_tokens: int) -> str:
        return fitted_context(
            self.base.tokenizer, wording, text, question, max_new_tokens, self.room, self.reserve_tokens
        )


@dataclass(frozen=True, eq=False)
class ReadContext:
    """A context that has been read.

    Attributes:
        text: all of it, for prompts that don't go on from what was read.
        cached: the tokens before a question, with keys and values.
        seconds: it took to read them.
    """

    text: str
    cached: CachedTokens
    seconds: float


class FullContextCached(FullContext):
    """The context is read once, in the wording that queries will have, and its keys and values are kept.

    A query whose prompt doesn't go on from the cached tokens (another wording, or a question so long that more of the
    context had to be cut) is read in full, and its `num_cached_tokens` is 0.

    Args:
        base: the base model.
        wording: of the queries to come.
        max_prompt_tokens: as for `FullContext`.
        reserve_tokens: as for `FullContext`.
        batching: how many queries run together.

    Raises:
        ConfigError: when a number is not positive.
    """

    name = "full-context-cached"

    def __init__(
        self,
        base: BaseModel,
        wording: Wording,
        *,
        max_prompt_tokens: int | None = None,
        reserve_tokens: int = RESERVE_TOKENS,
        batching: Batching | None = None,
    ) -> None:
        super().__init__(base, max_prompt_tokens=max_prompt_tokens, reserve_tokens=reserve_tokens, batching=batching)
        self.wording = wording

    def take_in(self, context: Context) -> ReadContext:  # type: ignore[override]
        """Reads the tokens that all questions about the context have before them.

        Raises:
            ConfigError: when wording and shots leave no room for a context.
        """
        started = time.perf_counter()
        kept = self._fitted(context.text, "", self.wording, 0)
        cached = read_tokens(self.base, shared_ids(self.base.tokenizer, self.wording, kept))
        return ReadContext(context.text, cached, time.perf_counter() - started)

    def answer(  # type: ignore[override]
        self, state: ReadContext, queries: Sequence[Query], wording: Wording, max_new_tokens: int
    ) -> list[Answer]:
        """Answers to the queries in the wording's open prompt, from the keys and values kept where they fit.

        Raises:
            ConfigError: when question, wording and shots leave no room for a context.
        """
        prompts = self._prompts(state.text, queries, wording, max_new_tokens)
        form = answer_form(self.base.tokenizer, wording, with_context=True)
        shared = list(state.cached.ids)
        goes_on = [prompt[: len(shared)] == shared and len(prompt) > len(shared) for prompt in prompts]
        answers: dict[int, Answer] = {}
        for prefix in (state.cached, None):
            rows = [i for i, fits in enumerate(goes_on) if fits == (prefix is not None)]
            found = answer_prompts(
                self.base,
                [prompts[i] for i in rows],
                [queries[i] for i in rows],
                form,
                max_new_tokens,
                prefix=prefix,
                batching=self.batching,
            )
            answers |= dict(zip(rows, found, strict=True))
        return [answers[i] for i in range(len(queries))]

    def costs(self, state: ReadContext, answers: Sequence[Answer]) -> Costs:  # type: ignore[override]
        """One forward pass over the cached tokens, without the head; answering as in `answering`.

        Stored are the keys and values: tokens x layers x 2 x their width (fewer where a layer has a window).
        """
        num_tokens = len(state.cached.ids)
        return Costs(
            contextualizing_flops=forward_flops(self._sizes, num_tokens, num_tokens),
            answering_flops=answering_flops(self._sizes, answers),
            stored_floats=state.cached.num_floats,
            stored_bytes=state.cached.num_bytes,
            contextualizing_seconds=state.seconds,
        )


def build(base: BaseModel, settings: MethodSettings) -> FullContext:
    """`full-context`."""
    return FullContext(
        base,
        max_prompt_tokens=settings.max_prompt_tokens,
        reserve_tokens=settings.reserve_tokens,
        batching=settings.batching,
    )


def build_cached(base: BaseModel, settings: MethodSettings) -> FullContextCached:
    """`full-context-cached`."""
    return FullContextCached(
        base,
        settings.wording,
        max_prompt_tokens=settings.max_prompt_tokens,
        reserve_tokens=settings.reserve_tokens,
        batching=settings.batching,
    )
