"""Prompts to `protocol.Answer`: generated, or the likeliest of a query's options, in batches of bounded size.

Also what that costs. An answer of k tokens runs the head k times and reads k - 1 of them again, each after all tokens
before it. Options with k tokens in all run the head once for all first tokens and once for each other, which is read
again but for an option's last; so with o options k - o tokens are read. With p prompt tokens after c cached ones, and
f(n, row, m) the forward pass of `base_model.costs`:

    generated    f(p, c + p, 1) + sum over i = 1 .. k - 1 of f(1, c + p + i, 1)
    options      f(p, c + p, 1) + f(k - o, c + p + k / o - 1, k - o)
    adapter      2 r (d_in + d_out) a target and token read, on top

Leaves out: wordings (`prompting`), and padding, which depends on the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from generative_adapter.base_model.costs import BaseSizes, forward_flops
from generative_adapter.base_model.decoding import greedy_answers
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_cache import CachedTokens
from generative_adapter.base_model.scoring import score_options
from generative_adapter.config import require
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.methods.prompting import AnswerForm
from generative_adapter.methods.protocol import Answer, Query

MAX_BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Batching:
    """How many queries run together.

    Attributes:
        max_rows: most queries.
        max_tokens: most tokens of their prompts, padding included; one query always runs.
    """

    max_rows: int = 64
    max_tokens: int = MAX_BATCH_TOKENS

    def __post_init__(self) -> None:
        require(self.max_rows > 0, f"batching.max_rows must be positive, got {self.max_rows}")
        require(self.max_tokens > 0, f"batching.max_tokens must be positive, got {self.max_tokens}")

    def batches(self, prompts: Sequence[Sequence[int]], indices: Sequence[int]) -> Iterator[list[int]]:
        """Some prompts' indices in batches, by length, the longest first."""
        batch: list[int] = []
        for index in sorted(indices, key=lambda i: -len(prompts[i])):
            width = len(prompts[batch[0]]) if batch else 0
            if batch and (len(batch) == self.max_rows or (len(batch) + 1) * width > self.max_tokens):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def answer_prompts(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    queries: Sequence[Query],
    form: AnswerForm,
    max_new_tokens: int,
    *,
    adapter: LowRankAdapter | None = None,
    prefix: CachedTokens | None = None,
    batching: Batching | None = None,
) -> list[Answer]:
    """Answers to queries, in their order: greedy, or the option whose tokens are the likeliest in the mean.

    Args:
        base: the base model, with whatever is injected into it.
        prompts: token ids of each query.
        queries: what they ask; those with options are answered by likelihood.
        form: how answers are written.
        max_new_tokens: longest generated answer.
        adapter: one for all.
        prefix: tokens that all prompts start with, already read.
        batching: how many run together.

    Returns:
        Of options, `num_new_tokens` counts their tokens.

    Raises:
        ConfigError: when an option has no text, or `max_new_tokens` is not positive.
    """
    batching, tokenizer = batching or Batching(), base.tokenizer
    num_cached = len(prefix.ids) if prefix else 0
    answers: dict[int, Answer] = {}
    chosen = [i for i, query in enumerate(queries) if query.options]
    generated = [i for i, query in enumerate(queries) if not query.options]
    for batch in batching.batches(prompts, chosen):
        started = time.perf_counter()
        options = [[form.option_ids(tokenizer, option) for option in queries[i].options] for i in batch]
        rows = [prompts[i] for i in batch]
        found = score_options(
            base, rows, options, adapters=adapter, prefix=prefix, max_batch_tokens=batching.max_tokens
        )
        seconds = (time.perf_counter() - started) / len(batch)
        for i, scores, own in zip(batch, found, options, strict=True):
            text = queries[i].options[max(range(len(scores)), key=scores.__getitem__)]
            answers[i] = Answer(text, scores, len(prompts[i]) - num_cached, num_cached, sum(map(len, own)), seconds)
    for batch in batching.batches(prompts, generated):
        started = time.perf_counter()
        with nullcontext() if adapter is None else inject(base.model, adapter):
            rows = [prompts[i] for i in batch]
            texts = greedy_answers(base, rows, max_new_tokens, form.end_ids(tokenizer), prefix=prefix)
        seconds = (time.perf_counter() - started) / len(batch)
        for i, own in zip(batch, texts, strict=True):
            text = own.text.split("\n", 1)[0].strip() if form.one_line else own.text
            num_prompt = own.num_prompt_tokens - num_cached
            answers[i] = Answer(text, (), num_prompt, num_cached, own.num_generated_tokens, seconds)
    return [answers[i] for i in range(len(queries))]


def answering_flops(sizes: BaseSizes, answers: Sequence[Answer], adapter_numbers: int = 0) -> float:
    """Operations of one answer, mean over those given; the formulas stand at the top of this module.

    Args:
        sizes: of the base model.
        answers: as `answer_prompts` gives them.
        adapter_numbers: sum over an adapter's targets of r (d_in + d_out); 0 without one.
    """
    if not answers:
        return 0.0
    return sum(_flops(sizes, answer, adapter_numbers) for answer in answers) / len(answers)


def _flops(sizes: BaseSizes, answer: Answer, adapter_numbers: int) -> float:
    before = answer.num_cached_tokens + answer.num_prompt_tokens
    total = forward_flops(sizes, answer.num_prompt_tokens, before, 1)
    if answer.option_scores:
        num_options = len(answer.option_scores)
        again = answer.num_new_tokens - num_options
        total += forward_flops(sizes, again, before + again / num_options, again)
    else:
        again = max(0, answer.num_new_tokens - 1)
        # The sum of rows before + 1 .. before + again, since attention's operations are linear in the row.
        total += forward_flops(sizes, again, before + (again + 1) / 2, again)
    return total + 2 * adapter_numbers * (answer.num_prompt_tokens + again)
