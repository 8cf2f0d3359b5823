"""How likely a base model finds each of several options after a prompt: mean log-probability of an option's tokens.

A batch of prompts is read once; the options go on from its keys and values. Leaves out: what prompts and options say
(`prompts`), and choosing among them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import DynamicCache

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_cache import CachedTokens, padded_prompts
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.errors import ConfigError
from generative_adapter.generator.low_rank import LowRankAdapter

Adapters = LowRankAdapter | Sequence[LowRankAdapter | None]


@torch.no_grad()
def score_options(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    adapters: Adapters | None = None,
    prefix: CachedTokens | None = None,
    max_batch_tokens: int = 16384,
) -> list[tuple[float, ...]]:
    """Mean of log P(token | prompt, option tokens before it) over the tokens of each option, in float32.

    Args:
        base: the base model.
        prompts: token ids, one list a row; all of them are read in one batch.
        options: token ids of the options of each prompt.
        adapters: one for all prompts, or one a prompt; None leaves a row at the plain base model.
        prefix: tokens that every prompt starts with, already read.
        max_batch_tokens: the options run in batches of about so many tokens, those before them included.

    Returns:
        One score an option, for each prompt.

    Raises:
        ConfigError: when the numbers of rows differ, a prompt or an option has no token, or a prompt doesn't go on
            from `prefix`.
    """
    if len(options) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts need as many lists of options, got {len(options)}")
    if any(not prompt for prompt in prompts):
        raise ConfigError("a prompt has no token; give at least one")
    if any(not option for each in options for option in each):
        raise ConfigError("an option has no token; give options that hold text")
    if not (adapters is None or isinstance(adapters, LowRankAdapter) or len(adapters) == len(prompts)):
        raise ConfigError(f"{len(prompts)} prompts need one adapter for all or one each, got {len(adapters)}")
    scores: list[tuple[float, ...]] = [()] * len(prompts)
    groups = prefix.groups(prompts) if prefix else [list(range(len(prompts)))]
    for rows in groups:
        if not rows:
            continue
        first, mask, cache = _read_prompts(base, [prompts[i] for i in rows], _take(adapters, rows), prefix)
        flat = [(row, option) for row, i in enumerate(rows) for option in options[i]]
        found: list[list[float]] = [[] for _ in rows]
        longest = max((len(option) for _, option in flat), default=0)
        size = max(1, max_batch_tokens // (mask.shape[1] + longest))
        for start in range(0, len(flat), size):
            part = flat[start : start + size]
            own = _take(adapters, [rows[row] for row, _ in part])
            for (row, _), score in zip(part, _read_options(base, part, first, mask, cache, own), strict=True):
                found[row].append(score)
        for row, i in enumerate(rows):
            scores[i] = tuple(found[row])
    return scores


def _read_prompts(
    base: BaseModel, prompts: list[Sequence[int]], adapters: Adapters | None, prefix: CachedTokens | None
) -> tuple[Tensor, Tensor, DynamicCache]:
    """Log P of the token after each prompt `[rows, vocabulary]`, the prompts' mask, their keys and values."""
    ids, mask = padded_prompts(base, prompts, prefix)
    done = len(prefix.ids) if prefix else 0
    cache = prefix.rows(len(prompts)) if prefix else DynamicCache(config=base.model.config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with _injected(base, adapters):
        output = base.model(
            input_ids=ids[:, done:],
            attention_mask=mask,
            position_ids=positions[:, done:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return output.logits[:, -1].float().log_softmax(dim=-1), mask, cache


def _read_options(
    base: BaseModel,
    part: list[tuple[int, Sequence[int]]],
    first: Tensor,
    mask: Tensor,
    cache: DynamicCache,
    adapters: Adapters | None,
) -> list[float]:
    """Scores of options, (row of the prompt, tokens); an option's last token is never read."""
    indices = torch.tensor([row for row, _ in part], device=base.device)
    heads = torch.tensor([option[0] for _, option in part], device=base.device)
    sums = first[indices].gather(1, heads[:, None])[:, 0]
    width = max(len(option) for _, option in part) - 1
    if width:
        pad = pad_id(base.tokenizer)
        padding = [width + 1 - len(option) for _, option in part]
        tokens = [list(option) + [pad] * n for (_, option), n in zip(part, padding, strict=True)]
        real = [[1] * (width - n) + [0] * n for n in padding]
        ids = torch.tensor(tokens, device=base.device)
        own_mask = torch.tensor(real, device=base.device)
        full_mask = torch.cat([mask[indices], own_mask], dim=1)
        own_cache = copy.deepcopy(cache)
        own_cache.batch_select_indices(indices)
        with _injected(base, adapters):
            logits = base.model(
                input_ids=ids[:, :-1],
                attention_mask=full_mask,
                position_ids=mask[indices].sum(dim=1, keepdim=True) + torch.arange(width, device=base.device),
                past_key_values=own_cache,
                use_cache=True,
            ).logits
        later = logits.float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        sums = sums + (later * own_mask).sum(dim=1)
    lengths = torch.tensor([len(option) for _, option in part], device=base.device)
    return (sums / lengths).tolist()


def _take(adapters: Adapters | None, rows: Sequence[int]) -> Adapters | None:
    if adapters is None or isinstance(adapters, LowRankAdapter):
        return adapters
    return [adapters[row] for row in rows]


def _injected(base: BaseModel, adapters: Adapters | None) -> AbstractContextManager[None]:
    return nullcontext() if adapters is None else inject(base.model, adapters)
