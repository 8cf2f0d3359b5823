"""Greedy answers of a base model to a batch of prompts of unequal length, each up to its own end.

Leaves out: what the prompts say (`prompts`) and which adapters run (`inject`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_cache import CachedTokens, padded_prompts
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.errors import ConfigError


@dataclass(frozen=True)
class Answer:
    """One generated text.

    Attributes:
        text: without the prompt, without what ended it and without special tokens.
        num_prompt_tokens: tokens the model was given.
        num_generated_tokens: tokens it produced, those that ended the answer included.
    """

    text: str
    num_prompt_tokens: int
    num_generated_tokens: int


@torch.no_grad()
def greedy_answers(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: Sequence[int],
    *,
    prefix: CachedTokens | None = None,
) -> list[Answer]:
    """The likeliest next tokens after each prompt, in one batch.

    Args:
        base: the base model, with whatever is injected into it.
        prompts: token ids, one list a row; padded on the left.
        max_new_tokens: longest answer in tokens.
        end: token ids that end an answer, all of them in this order; the model's own end of sequence ends it too.
        prefix: tokens that every prompt starts with, already read.

    Raises:
        ConfigError: when `max_new_tokens` is not positive, or a prompt doesn't go on from `prefix`.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if prefix is not None and len(groups := prefix.groups(prompts)) > 1:
        found: dict[int, Answer] = {}
        for group in groups:
            part = greedy_answers(base, [prompts[i] for i in group], max_new_tokens, end, prefix=prefix)
            found |= dict(zip(group, part, strict=True))
        return [found[i] for i in range(len(prompts))]
    own_ends = base.model.generation_config.eos_token_id  # several where turns end otherwise than texts
    ends = {*(own_ends if isinstance(own_ends, list) else [own_ends])} - {None}
    if len(end) == 1:
        ends.add(end[0])
    width = max(map(len, prompts))
    pad = pad_id(base.tokenizer)
    ids, mask = padded_prompts(base, prompts, prefix)
    reused = {} if prefix is None else {"past_key_values": prefix.rows(len(prompts))}
    stopping = StoppingCriteriaList([_EndsWith(end, width)] if len(end) > 1 else [])
    output = base.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        stopping_criteria=stopping,
        **reused,
    )
    answers = []
    for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
        kept, produced = _cut(row, list(end), ends)
        text: Any = base.tokenizer.decode(row[:kept], skip_special_tokens=True)
        answers.append(Answer(text.strip(), len(prompt), produced))
    return answers


class _EndsWith(StoppingCriteria):
    """Stops a row once its generated part ends with `end`."""

    def __init__(self, end: Sequence[int], num_prompt_tokens: int) -> None:
        self.end = torch.tensor(list(end))
        self.shortest = num_prompt_tokens + len(end)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        if input_ids.shape[1] < self.shortest:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return (input_ids[:, -len(self.end) :] == self.end.to(input_ids.device)).all(dim=-1)


def _cut(row: list[int], end: list[int], ends: set[int]) -> tuple[int, int]:
    """Tokens of the answer's text, and tokens produced for it, of a generated row."""
    for produced in range(1, len(row) + 1):
        if row[produced - 1] in ends:
            return produced - 1, produced
        if end and row[max(0, produced - len(end)) : produced] == end:
            return produced - len(end), produced
    return len(row), len(row)
