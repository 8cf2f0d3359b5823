"""No adapter: the plain base model answers closed-book, in the wording that a generator was trained with.

What the generative adapter is held against where only the adapter's own effect counts, such as its interference with
what has nothing to do with its context. `closed_book` answers in the task's wording instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from generative_adapter.base_model.costs import base_sizes
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import question_ids
from generative_adapter.checkpoint import find_generator, read_generator_info
from generative_adapter.config import PromptConfig
from generative_adapter.config_mapping import from_mapping
from generative_adapter.methods.answering import Batching, answer_prompts, answering_flops
from generative_adapter.methods.prompting import answer_form, own_form, prompt_ids
from generative_adapter.methods.protocol import Answer, Context, Costs, Query, Wording
from generative_adapter.methods.settings import MethodSettings
from generative_adapter.methods.text_losses import text_losses


class NoAdapter:
    """The base model alone, asked as its generator would ask it.

    Args:
        base: the base model.
        prompt: the generator's wording.
        task_wording: put queries in the task's closed wording instead, as `GenerativeAdapterMethod` would.
        batching: how many queries run together.
    """

    name = "no-adapter"

    def __init__(
        self, base: BaseModel, prompt: PromptConfig, *, task_wording: bool = False, batching: Batching | None = None
    ) -> None:
        self.base = base
        self.prompt = prompt
        self.task_wording = task_wording
        self.batching = batching
        self._sizes = base_sizes(base.model)

    def take_in(self, context: Context) -> None:
        """Nothing is kept."""

    def answer(self, state: None, queries: Sequence[Query], wording: Wording, max_new_tokens: int) -> list[Answer]:
        """Answers to the queries in the generator's wording."""
        tokenizer = self.base.tokenizer
        if self.task_wording:
            prompts = [prompt_ids(tokenizer, wording, query.question) for query in queries]
            form = answer_form(tokenizer, wording)
        else:
            prompts = [question_ids(tokenizer, self.prompt, query.question) for query in queries]
            form = own_form(self.prompt)
        return answer_prompts(self.base, prompts, queries, form, max_new_tokens, batching=self.batching)

    def text_losses(self, state: None, texts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """See `protocol.PredictsText`; those of the plain base model."""
        return text_losses(self.base, texts)

    def costs(self, state: None, answers: Sequence[Answer]) -> Costs:
        """Answering only; formulas in `answering`."""
        return Costs(answering_flops=answering_flops(self._sizes, answers))


def build(base: BaseModel, settings: MethodSettings) -> NoAdapter:
    """`no-adapter`, in the wording of the settings' generator or the shipped one; its weights are not read."""
    path = find_generator(settings.generator)
    prompt = from_mapping(PromptConfig, read_generator_info(path)["prompt"], "prompt")
    return NoAdapter(base, prompt, task_wording=settings.task_wording, batching=settings.batching)
