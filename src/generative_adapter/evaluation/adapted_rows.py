"""Rows of tokens, each under its own adapter: how likely their targets are, and how they go on.

Leaves out: what the rows say, and where their adapters come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_cache import padded_prompts
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.errors import ConfigError
from generative_adapter.generator.low_rank import LowRankAdapter

Adapters = Sequence[LowRankAdapter | None]


@torch.no_grad()
def score_rows(
    base: BaseModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapters: Adapters
) -> list[tuple[float, bool]]:
    """Sum of log P(token | what stands before it) over the target of each row, in one batch.

    Args:
        base: the base model.
        rows: token ids of a prompt and of its target.
        adapters: one a row; None leaves a row at the plain base model.

    Returns:
        For each row the sum, in nats, and whether every target token is the likeliest there.

    Raises:
        ConfigError: when a prompt or a target has no token.
    """
    if any(not prompt or not target for prompt, target in rows):
        raise ConfigError("a prompt or a target has no token; give at least one of each")
    ids, mask = padded_prompts(base, [[*prompt, *target][:-1] for prompt, target in rows])
    longest = max(len(target) for _, target in rows)
    with _adapted(base, adapters):
        logits = base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=longest,
        ).logits
    scores = []
    for (_, target), own in zip(rows, logits, strict=True):
        log_probabilities = own[-len(target) :].float().log_softmax(dim=-1)
        expected = torch.tensor(list(target), device=own.device)
        found = log_probabilities.gather(1, expected[:, None]).sum().item()
        scores.append((found, bool((log_probabilities.argmax(dim=-1) == expected).all())))
    return scores


@torch.no_grad()
def continue_rows(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    adapters: Adapters,
    *,
    until: Sequence[str] = (),
    max_new_tokens: int,
) -> list[str]:
    """The likeliest next tokens after each prompt as text, in one batch.

    Args:
        base: the base model.
        prompts: token ids, one list a row.
        adapters: one a row; None leaves a row at the plain base model.
        until: texts that end a row; neither they nor what follows is given back.
        max_new_tokens: longest continuation in tokens.

    Raises:
        ConfigError: when a prompt has no token, or `max_new_tokens` is not positive.
    """
    if max_new_tokens < 1 or any(not prompt for prompt in prompts):
        raise ConfigError("a continuation needs a prompt of at least one token, and room for at least one more")
    ids, mask = padded_prompts(base, prompts)
    width = ids.shape[1]
    configured: Any = base.model.generation_config.eos_token_id
    last: Any = base.tokenizer.eos_token_id
    ends = {*(configured if isinstance(configured, list) else [configured]), last} - {None}
    stopping = StoppingCriteriaList([_HoldsText(base.tokenizer, until, width)] if until else [])
    with _adapted(base, adapters):
        output = base.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad_id(base.tokenizer),
            eos_token_id=sorted(ends) or None,
            stopping_criteria=stopping,
        )
    texts = []
    for row in output[:, width:].tolist():
        kept = next((index for index, token in enumerate(row) if token in ends), len(row))
        text: Any = base.tokenizer.decode(row[:kept], skip_special_tokens=True)
        for end in until:
            text = text.split(end, 1)[0]
        texts.append(text)
    return texts


class _HoldsText(StoppingCriteria):
    """Stops a row once its generated part holds one of the texts."""

    def __init__(self, tokenizer: Any, until: Sequence[str], num_prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.until = until
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        texts = self.tokenizer.batch_decode(input_ids[:, self.num_prompt_tokens :], skip_special_tokens=True)
        done = [any(end in text for end in self.until) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _adapted(base: BaseModel, adapters: Adapters) -> AbstractContextManager[None]:
    first = adapters[0] if adapters else None
    if first is not None and all(adapter is first for adapter in adapters):
        return inject(base.model, first)
    return inject(base.model, adapters)
