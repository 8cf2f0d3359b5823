"""Keys and values of tokens that many prompts start with, read once and reused.

Leaves out: which tokens those are, and adapters: what is cached holds those that were injected when it was read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.errors import ConfigError


@dataclass(frozen=True, eq=False)
class CachedTokens:
    """Tokens with their keys and values; never changed by those who read on from them.

    Attributes:
        ids: the tokens.
        cache: of one row.
        has_windows: whether a layer attends to a window of the last tokens only.
    """

    ids: tuple[int, ...]
    cache: DynamicCache
    has_windows: bool

    @property
    def num_floats(self) -> int:
        """Numbers kept: tokens x layers x 2 x width of keys, where no layer has a window."""
        return sum(tensor.numel() for tensor in _tensors(self.cache))

    @property
    def num_bytes(self) -> int:
        """The same in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self.cache))

    def rows(self, num_rows: int) -> DynamicCache:
        """A copy of the cache for a batch."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(num_rows)
        return cache

    def groups(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices of prompts that can run in one batch.

        Padding goes between the cached tokens and the rest of a prompt. A layer with a window counts it as part of the
        window, so there only prompts of one length run together.

        Raises:
            ConfigError: when a prompt doesn't start with these tokens, or has none after them.
        """
        for prompt in prompts:
            if tuple(prompt[: len(self.ids)]) != self.ids or len(prompt) == len(self.ids):
                raise ConfigError(
                    f"a prompt of {len(prompt)} tokens doesn't go on from the {len(self.ids)} cached ones; give "
                    "prompts that start with them and have at least one token more"
                )
        if not self.has_windows:
            return [list(range(len(prompts)))] if prompts else []
        lengths = sorted({len(prompt) for prompt in prompts})
        return [[i for i, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]


@torch.no_grad()
def read_tokens(base: BaseModel, ids: Sequence[int]) -> CachedTokens:
    """Reads tokens once under whatever is injected into the base model; the language-model head is not run.

    Raises:
        ConfigError: when there are no tokens.
    """
    if not ids:
        raise ConfigError("nothing to cache: give at least one token")
    cache = DynamicCache(config=base.model.config)
    decoder = base.model.base_model
    decoder(input_ids=torch.tensor([list(ids)], device=base.device), past_key_values=cache, use_cache=True)
    return CachedTokens(tuple(ids), cache, any(getattr(layer, "is_sliding", False) for layer in cache.layers))


def padded_prompts(
    base: BaseModel, prompts: Sequence[Sequence[int]], prefix: CachedTokens | None = None
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[rows, tokens]`, padded on the left, or between a prefix and the rest."""
    shared = list(prefix.ids) if prefix else []
    width, pad = max(map(len, prompts)), pad_id(base.tokenizer)
    ids, mask = [], []
    for prompt in prompts:
        padding = width - len(prompt)
        ids.append(shared + [pad] * padding + list(prompt[len(shared) :]))
        mask.append([1] * len(shared) + [0] * padding + [1] * (len(prompt) - len(shared)))
    return torch.tensor(ids, device=base.device), torch.tensor(mask, device=base.device)


def _tensors(cache: DynamicCache) -> list[Tensor]:
    return [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
