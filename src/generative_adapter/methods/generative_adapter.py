"""Generative Adapter: the context becomes a low-rank adapter in one forward pass, and is not in the prompt.

Leaves out: training a generator; what that took stands in its file (`training.loop`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from generative_adapter.base_model.costs import base_sizes, forward_flops
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import question_ids, start_ids
from generative_adapter.checkpoint import find_generator, load_generator
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.generator.costs import adapter_flops, writing_flops
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.generator.memory import ContextMemory
from generative_adapter.methods.answering import Batching, answer_prompts, answering_flops
from generative_adapter.methods.prompting import answer_form, own_form, prompt_ids
from generative_adapter.methods.protocol import Answer, Context, Costs, Query, Wording
from generative_adapter.methods.settings import MethodSettings
from generative_adapter.methods.text_losses import text_losses


@dataclass(frozen=True, eq=False)
class GeneratedAdapter:
    """What became of a context.

    Attributes:
        memory: from which the adapter is made.
        adapter: in float32.
        seconds: both took.
    """

    memory: ContextMemory
    adapter: LowRankAdapter
    seconds: float


class GenerativeAdapterMethod:
    """A generator's adapter answers, in the wording that the generator was trained with.

    Args:
        model: the base model with its generator.
        task_wording: put queries in the task's closed wording instead.
        training_flops: what training the generator took, for `costs`; None: what its file tells, which may be
            nothing.
        batching: how many queries run together.
        memory_dtype: form in which memories are written to a file and read back before adapters are made of them; None:
            they aren't.
    """

    name = "generative-adapter"

    def __init__(
        self,
        model: GenerativeAdapter,
        *,
        task_wording: bool = False,
        training_flops: float | None = None,
        batching: Batching | None = None,
        memory_dtype: str | None = None,
    ) -> None:
        self.model = model
        self.base = model.base
        self.task_wording = task_wording
        self.training_flops: float | None = training_flops
        if training_flops is None:
            self.training_flops = model.checkpoint.training.get("flops") or None
        self.batching = batching
        self.memory_dtype = memory_dtype
        self._sizes = base_sizes(model.base.model)

    def take_in(self, context: Context) -> GeneratedAdapter:
        """The adapter of the whole text.

        Raises:
            EmptyContextError: when it holds nothing but white space.
        """
        started = time.perf_counter()
        memory = self.model.contextualize(context.text)
        if self.memory_dtype is not None:
            memory = _stored(memory, self.memory_dtype)
        adapter = self.model.adapter(memory)
        return GeneratedAdapter(memory, adapter, time.perf_counter() - started)

    def answer(
        self, state: GeneratedAdapter, queries: Sequence[Query], wording: Wording, max_new_tokens: int
    ) -> list[Answer]:
        """Answers to the queries under the context's adapter."""
        tokenizer, own = self.base.tokenizer, self.model.checkpoint.prompt
        if self.task_wording:
            prompts = [prompt_ids(tokenizer, wording, query.question) for query in queries]
            form = answer_form(tokenizer, wording)
        else:
            prompts = [question_ids(tokenizer, own, query.question) for query in queries]
            form = own_form(own)
        return answer_prompts(
            self.base, prompts, queries, form, max_new_tokens, adapter=state.adapter, batching=self.batching
        )

    def text_losses(self, state: GeneratedAdapter, texts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """See `protocol.PredictsText`; under the context's adapter."""
        return text_losses(self.base, texts, adapter=state.adapter)

    def costs(self, state: GeneratedAdapter, answers: Sequence[Answer]) -> Costs:
        """What the context and these answers cost.

        Contextualising T chunks of n tokens, by `base_model.costs` and `generator.costs`: T forward passes up to the
        last block whose input is read, all but the first under an adapter (2 n r (d_in + d_out) a target below that
        block), T writes, and T adapters made, that of the last chunk for the answers. A generator of independent chunks
        needs one adapter only, and its reading adapter, if any, in every pass; its chunks are counted as if of one
        length. Stored are the adapter's factors, r (d_in + d_out) numbers a target; the memory that they are made from
        is smaller or larger and need not be kept.
        """
        config, generator = self.model.checkpoint.config, self.model.generator
        num_start, highest = len(start_ids(self.base.tokenizer)), generator.layers[-1]
        below = [target.name for target in generator.targets if target.layer < highest]
        numbers = state.adapter.num_parameters
        while_reading = LowRankAdapter({name: state.adapter[name] for name in below}).num_parameters
        num_tokens, independent = state.memory.num_tokens, generator.independent_chunks
        reading = 0 if generator.reading_adapter is None else generator.reading_adapter.num_parameters
        chunk_tokens = -(-num_tokens // max(1, state.memory.num_chunks)) if independent else config.chunk_tokens
        num_rows = state.memory.num_rows
        taken = generator.units_taken(num_rows)
        making, total = adapter_flops(config, generator.targets, num_rows, taken), 0.0
        for number, length in enumerate(_chunk_lengths(num_tokens, chunk_tokens)):
            read, under = length + num_start, reading if independent else while_reading * (number > 0)
            total += forward_flops(self._sizes, read, read, num_blocks=highest) + 2 * read * under
            total += writing_flops(config, len(generator.targets), generator.hidden_size, length)
            total += making if number == 0 or not independent else 0
        factors = state.adapter.values()
        return Costs(
            training_flops=self.training_flops,
            contextualizing_flops=total,
            answering_flops=answering_flops(self._sizes, answers, numbers),
            stored_floats=numbers,
            stored_bytes=sum(t.numel() * t.element_size() for each in factors for t in (each.down, each.up)),
            contextualizing_seconds=state.seconds,
        )


def _stored(memory: ContextMemory, dtype: str) -> ContextMemory:
    """The memory as a file of that form holds it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        memory.save(path, dtype)
        return ContextMemory.load(path)


def _chunk_lengths(num_tokens: int, chunk_tokens: int) -> list[int]:
    return [min(chunk_tokens, num_tokens - start) for start in range(0, num_tokens, chunk_tokens)]


def build(base: BaseModel, settings: MethodSettings) -> GenerativeAdapterMethod:
    """`generative-adapter`, with the settings' generator or the shipped one."""
    path = find_generator(settings.generator)
    model = GenerativeAdapter(base, load_generator(path, base, any_base=settings.any_base))
    return GenerativeAdapterMethod(
        model, task_wording=settings.task_wording, batching=settings.batching, memory_dtype=settings.memory_dtype
    )
