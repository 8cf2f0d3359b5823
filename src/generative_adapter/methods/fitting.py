"""Fine-tunes some of a model's weights on token sequences, with early stopping. One device, AdamW, no schedule.

Leaves out: which weights (`tuned_weights`) and which sequences (`fine_tuning`); training a generator is `training`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative_adapter.base_model.costs import base_sizes, forward_flops
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import head_at
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.config import require
from generative_adapter.errors import TrainingError
from generative_adapter.methods.tuned_weights import TunedWeights, Values

EpochProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """A sequence to learn.

    Attributes:
        ids: its tokens.
        num_given: tokens at its start that are not predicted; the first one never is.
    """

    ids: tuple[int, ...]
    num_given: int = 1

    @property
    def num_supervised(self) -> int:
        """Tokens that are predicted."""
        return len(self.ids) - max(1, self.num_given)


@dataclass(frozen=True)
class FitSettings:
    """How weights are fine-tuned.

    Attributes:
        learning_rate: of AdamW, constant.
        max_epochs: most passes over the samples.
        batch_size: samples a step.
        patience: stop when the validation loss rose so many epochs in a row; 0: never.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to it.
        max_batch_tokens: a step runs in parts of at most so many tokens, padding included; one sample always runs.
        seed: of the samples' order.
    """

    learning_rate: float
    max_epochs: int
    batch_size: int
    patience: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_batch_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_epochs", "batch_size", "max_grad_norm", "max_batch_tokens"):
            require(getattr(self, name) > 0, f"fine-tuning: {name} must be positive, got {getattr(self, name)}")
        for name in ("patience", "weight_decay"):
            require(getattr(self, name) >= 0, f"fine-tuning: {name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Fit:
    """What fine-tuning gave.

    Attributes:
        values: of the epoch with the lowest validation loss, or of the last one without validation, on the CPU.
        losses: mean negative log-likelihood of a token while training, an epoch.
        validation_losses: before the first epoch and after each; empty without validation.
        flops: of all passes, padding included: `TunedWeights.training_flops`, and forward passes for validation.
    """

    values: Values
    losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    flops: float

    @property
    def num_epochs(self) -> int:
        """Passes over the samples."""
        return len(self.losses)


def fit(
    weights: TunedWeights,
    start: Values,
    samples: Sequence[Sample],
    settings: FitSettings,
    validation: Sequence[Sample] = (),
    progress: EpochProgress | None = None,
) -> Fit:
    """Weights that make the samples likely; the base model itself is unchanged afterwards.

    A step minimises the mean loss of its batch's supervised tokens. Weights that the model holds in fewer than 32 bits
    are trained as float32 copies, so that small steps are not rounded away.

    Args:
        weights: which weights, and of which model.
        start: their first values; empty: as before any training.
        samples: to learn from.
        settings: how.
        validation: to stop early by.
        progress: called with epochs done and epochs at most.

    Raises:
        TrainingError: when there is no token to predict, or the loss is no longer finite.
    """
    samples = [sample for sample in samples if sample.num_supervised > 0]
    validation = [sample for sample in validation if sample.num_supervised > 0]
    if not samples:
        raise TrainingError("nothing to fine-tune on: no sample has a token to predict; give longer texts or answers")
    order = random.Random(settings.seed)
    runner = _Runner(weights, settings.max_batch_tokens)
    losses: list[float] = []
    with weights.applied(start, trainable=True) as parameters:
        masters = _Masters(parameters)
        optimizer = torch.optim.AdamW(masters.values, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        checked = [runner.loss(validation)] if validation else []
        best = _snapshot(parameters) if validation else {}
        rises = 0
        for epoch in range(settings.max_epochs):
            shuffled = order.sample(samples, len(samples))
            total = 0.0
            for first in range(0, len(shuffled), settings.batch_size):
                total += runner.gradients(shuffled[first : first + settings.batch_size])
                masters.take_gradients()
                nn.utils.clip_grad_norm_(masters.values, settings.max_grad_norm)
                optimizer.step()
                masters.give_back()
            losses.append(total / sum(sample.num_supervised for sample in samples))
            if progress is not None:
                progress(epoch + 1, settings.max_epochs)
            if not validation:
                continue
            checked.append(runner.loss(validation))
            rises = rises + 1 if checked[-1] > checked[-2] else 0
            if checked[-1] < min(checked[:-1]):
                best = _snapshot(parameters)
            if settings.patience and rises == settings.patience:
                break
        values = best if validation else _snapshot(parameters)
    return Fit(values, tuple(losses), tuple(checked), runner.flops)


class _Runner:
    """Losses and gradients in parts of bounded size, and their operations."""

    def __init__(self, weights: TunedWeights, max_batch_tokens: int) -> None:
        self.weights = weights
        self.max_batch_tokens = max_batch_tokens
        self.flops = 0.0
        self._sizes = base_sizes(weights.base.model)

    def gradients(self, batch: Sequence[Sample]) -> float:
        """Adds the gradients of a batch's mean loss; gives the summed loss."""
        num_supervised = sum(sample.num_supervised for sample in batch)
        total = 0.0
        for part in self._parts(batch):
            loss, num_tokens, width = _summed_loss(self.weights.base, part)
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    f"the loss of fine-tuning is {loss.item()}; lower the learning rate or train in float32"
                )
            (loss / num_supervised).backward()
            total += loss.item()
            num_heads = sum(sample.num_supervised for sample in part)
            self.flops += self.weights.training_flops(num_tokens, width, num_heads)
        return total

    @torch.no_grad()
    def loss(self, samples: Sequence[Sample]) -> float:
        """Mean loss of a token."""
        total = 0.0
        for part in self._parts(samples):
            loss, num_tokens, width = _summed_loss(self.weights.base, part)
            total += loss.item()
            num_heads = sum(sample.num_supervised for sample in part)
            self.flops += forward_flops(self._sizes, num_tokens, width, num_heads)
            self.flops += 2 * num_tokens * self.weights.adapter_numbers
        return total / sum(sample.num_supervised for sample in samples)

    def _parts(self, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        part: list[Sample] = []
        for sample in sorted(samples, key=lambda each: -len(each.ids)):
            if part and (len(part) + 1) * len(part[0].ids) > self.max_batch_tokens:
                yield part
                part = []
            part.append(sample)
        if part:
            yield part


class _Masters:
    """The optimiser's float32 copies of parameters; float32 parameters are their own."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = list(parameters.values())
        self.values = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.parameters]

    def take_gradients(self) -> None:
        for parameter, master in zip(self.parameters, self.values, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def give_back(self) -> None:
        for parameter, master in zip(self.parameters, self.values, strict=True):
            if master is not parameter:
                parameter.copy_(master)
            parameter.grad = None


def _summed_loss(base: BaseModel, samples: Sequence[Sample]) -> tuple[Tensor, int, int]:
    """Summed -log P of the supervised tokens, at which alone the head runs; computed tokens, and tokens of a row."""
    width, pad = max(len(sample.ids) for sample in samples), pad_id(base.tokenizer)
    ids = torch.full((len(samples), width), pad)
    real = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        length, given = len(sample.ids), max(1, sample.num_given)
        ids[row, :length] = torch.tensor(sample.ids)
        real[row, :length] = 1
        labels[row, given:length] = ids[row, given:length]
    ids, real, labels = (each.to(base.device) for each in (ids, real, labels))
    predicts = torch.zeros_like(real, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] >= 0
    with head_at(base.model, predicts):
        logits = base.model(input_ids=ids, attention_mask=real, use_cache=False).logits
    loss = F.cross_entropy(logits.float(), labels[:, 1:][predicts[:, :-1]], reduction="sum")
    return loss, ids.numel(), width


def _snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}
