"""The losses of a training step as the paper's text reads: chunk after chunk in a Python loop, an SVD a state.

`bench training` measures the parallel pass (`base_model.prefix_pass`) against it. It is written plainly, not slowly:
all segments that read the same number of chunks run side by side as the padded rows of a batch, and so do contexts,
unless they are taken one at a time as in the paper's reference code; a first chunk runs without the language-model
head; all targets are normalised in one call. It shares the generator's projections and reads, the optimiser and the
hooks, so what differs is the layout of the pass and the normalisation: `torch.svd_lowrank` with one iteration,
differentiated by autograd, as in the paper's reference code.
Leaves out: lookups and distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from generative_adapter.base_model.capture import on_block_inputs
from generative_adapter.base_model.inject import add_to_outputs
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import attention_kernel
from generative_adapter.base_model.prompts import pad_id, start_ids
from generative_adapter.errors import ConfigError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import OBJECTIVES, ContextItem, split
from generative_adapter.training.objectives import weighted_loss
from generative_adapter.training.optimizers import build_optimizer
from generative_adapter.training.recipe import TrainingRecipe

Normalizer = Callable[[Tensor], Tensor]

SMALLEST_GAP = 1e-7
_NO_LABEL = -100


class PlainTrainer:
    """Optimiser steps on the plain losses.

    Args:
        recipe: settings of the loss and the optimiser.
        base: the frozen base model.
        generator: the network that is trained; its own normalisation is used for `ridge` only, which has no SVD.
        contexts_at_once: how many contexts run side by side; None: all of a pass. 1 is what the reference code does.

    Raises:
        ConfigError: when the recipe asks for a loss that the plain implementation lacks.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        base: BaseModel,
        generator: AdapterGenerator,
        contexts_at_once: int | None = None,
    ) -> None:
        for name in ("lookup_weight", "distillation_weight"):
            if getattr(recipe, name) > 0:
                raise ConfigError(
                    f"the plain implementation has no {name.removesuffix('_weight')} loss; set {name} to 0 or leave "
                    "the comparison out"
                )
        self.recipe = recipe
        self.base = base
        self.generator = generator
        self.contexts_at_once = contexts_at_once
        self.optimizer = build_optimizer(recipe, generator)
        rank, normalization = recipe.generator.rank, recipe.generator.normalization
        self._normalize = generator.normalize if normalization == "ridge" else lambda s: svd_lowrank_polar(s, rank)
        self._weights = {name: getattr(recipe, f"{name}_weight") for name in OBJECTIVES}

    def train_step(self, items: Sequence[ContextItem], step: int) -> float:
        """One step on these contexts, in the project's own passes or smaller ones; gives the loss."""
        counts = count_labels(items, len(start_ids(self.base.tokenizer)))
        total = 0.0
        parts = split(items, self.recipe.micro_batch_tokens)
        at_once = self.contexts_at_once or max(map(len, parts))
        for part in (each[at : at + at_once] for each in parts for at in range(0, len(each), at_once)):
            with attention_kernel(self.base.model, self.recipe.attention):
                losses, objectives = plain_losses(self.base, self.generator, part, self._normalize)
                loss = weighted_loss(losses, objectives, counts, self._weights)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.recipe.gradient_clip)
        self.optimizer.set_learning_rate(self.recipe.learning_rate_at(step))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def plain_losses(
    base: BaseModel, generator: AdapterGenerator, items: Sequence[ContextItem], normalize: Normalizer
) -> tuple[Tensor, Tensor]:
    """-log P of every supervised token of eq. (5), arXiv:2411.05877, chunk after chunk.

    Args:
        base: the frozen base model.
        generator: gets gradients.
        items: the contexts of one pass.
        normalize: norm(S) of the states of all targets, `[targets, contexts, d_r, d_r]`.

    Returns:
        Losses `[supervised]`, float32, and the index of each into `OBJECTIVES`, `[supervised]`.
    """
    start = tuple(start_ids(base.tokenizer))
    names = [target.name for target in generator.targets]
    states: Tensor | None = None  # [targets, contexts read, ...]
    normalized: Tensor | None = None
    read: list[int] = []  # the contexts that these belong to
    found: list[tuple[Tensor, Tensor]] = []
    for level in range(1, max(len(item.chunks) for item in items) + 1):
        here = [index for index, item in enumerate(items) if len(item.chunks) >= level]
        asked = [(index, segment) for index in here for segment in items[index].segments if segment.level == level]
        deeper = any(len(items[index].chunks) > level for index in here)
        completed = ["completion" if level > 1 and items[index].completion else "" for index in here]
        if not (asked or deeper or any(completed)):
            break
        rows = torch.tensor([read.index(index) for index in here], device=base.device) if level > 1 else None
        ids, mask = _padded(base, [(*start, *items[index].chunks[level - 1]) for index in here])
        hidden: dict[int, Tensor] = {}
        under = None if normalized is None else normalized[:, rows]
        with on_block_inputs(base.model, generator.layers, hidden.__setitem__):
            found += _run(base, generator, under, ids, mask, [(kind, 1) for kind in completed])
        if not (asked or deeper):
            break
        chunk = {layer: values[:, len(start) :] for layer, values in hidden.items()}
        increments = generator.write(chunk, mask[:, len(start) :])
        added = torch.stack([increments[name] for name in names])
        states = added if states is None else states[:, rows] + added
        normalized, read = normalize(states), here
        if asked:
            rows = torch.tensor([read.index(index) for index, _ in asked], device=base.device)
            ids, mask = _padded(base, [segment.ids for _, segment in asked])
            kinds = [(segment.objective, segment.num_prompt) for _, segment in asked]
            found += _run(base, generator, normalized[:, rows], ids, mask, kinds)
    losses, objectives = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(objectives)


def svd_lowrank_polar(states: Tensor, rank: int) -> Tensor:
    """norm(S) = U V^T, eqs. (7)-(9), arXiv:2411.05877, by one randomised SVD; differentiable by autograd.

    The backward of an SVD divides by the gaps between singular values: a state with two that nearly coincide gives
    zeros and gets no gradient, and what still is not finite counts as none.

    Args:
        states: S, `[..., d_r, d_r]`.
        rank: r, singular directions that are kept.
    """
    states = states.float().clone()
    left, values, right = torch.svd_lowrank(states, q=rank, niter=1)
    distinct = (values[..., :-1] - values[..., 1:] >= SMALLEST_GAP).all(-1)[..., None, None]
    if states.requires_grad:
        states.register_hook(lambda gradient: gradient.where(distinct, 0.0).nan_to_num(0.0, 0.0, 0.0))
    return ((left * (values > 0).unsqueeze(-2)) @ right.mT).where(distinct, 0.0)


def count_labels(items: Sequence[ContextItem], num_start_tokens: int) -> dict[str, int]:
    """Supervised tokens of each objective."""
    counts: dict[str, int] = {name: 0 for name in OBJECTIVES}
    for item in items:
        for segment in item.segments:
            counts[segment.objective] += len(segment.ids) - segment.num_prompt
        if item.completion:
            counts["completion"] += sum(num_start_tokens + len(chunk) - 1 for chunk in item.chunks[1:])
    return counts


def _run(
    base: BaseModel,
    generator: AdapterGenerator,
    normalized: Tensor | None,
    ids: Tensor,
    mask: Tensor,
    kinds: Sequence[tuple[str, int]],
) -> list[tuple[Tensor, Tensor]]:
    """One forward pass of a padded batch under one adapter a row.

    Args:
        base: the frozen base model.
        generator: reads.
        normalized: norm(S) of each target and row, `[targets, rows, d_r, d_r]`; None: the plain base model.
        ids: `[rows, tokens]`.
        mask: True for real tokens, `[rows, tokens]`.
        kinds: objective of each row ("": none) and how many of its tokens are given.

    Returns:
        Losses and objectives of the supervised tokens; nothing when there are none.
    """
    updates: dict[str, Callable[[Tensor], Tensor]] = {}
    if normalized is not None:
        dtype = base.dtype
        for target, states in zip(generator.targets, normalized, strict=True):
            updates[target.name] = lambda x, name=target.name, s=states: generator[name].read(x, s.to(dtype))
    padding = None if bool(mask.all()) else mask.long()
    supervised = any(kind for kind, _ in kinds)
    model: Any = base.model if supervised else getattr(base.model, "base_model", base.model)
    with add_to_outputs(base.model, updates):
        output = model(input_ids=ids, attention_mask=padding, use_cache=False)
    if not supervised:
        return []
    labels = ids.masked_fill(~mask, _NO_LABEL)
    objectives = torch.zeros_like(ids)
    for row, (kind, num_prompt) in enumerate(kinds):
        labels[row, : num_prompt if kind else None] = _NO_LABEL
        objectives[row] = OBJECTIVES.index(kind) if kind else 0
    logits, labels = output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=_NO_LABEL)
    counted = labels != _NO_LABEL
    return [(losses[counted], objectives[:, 1:].flatten()[counted])]


def _padded(base: BaseModel, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right, and True for real tokens, `[texts, tokens]` each."""
    width = max(map(len, texts))
    filler = pad_id(base.tokenizer)
    ids = torch.tensor([[*text, *[filler] * (width - len(text))] for text in texts], device=base.device)
    lengths = torch.tensor([len(text) for text in texts], device=base.device)
    return ids, torch.arange(width, device=base.device) < lengths.unsqueeze(1)
