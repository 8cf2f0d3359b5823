"""General ability: how well a model predicts held-out text with a context's state, against the model without it.

The text has nothing to do with the contexts, so a state should leave its perplexity as it was: a ratio of 1. Leaves
out: answers to unrelated questions (`interference`), and text that continues a context (`perplexity`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.metrics import Estimate, bootstrap_mean
from generative_adapter.methods.protocol import Context, Method, PredictsText
from generative_adapter.methods.text_losses import text_losses


@dataclass(frozen=True)
class GeneralAbility:
    """Perplexities of the same text; each is exp of the mean -log P of its tokens.

    Attributes:
        method: whose states they are.
        plain_perplexity: of the base model.
        perplexities: under the state of each context, in order.
        ratio: of these to the base model's, the mean over contexts with its interval.
        max_ratio: of the context that harms most.
        num_tokens: tokens predicted, the same each time.
        num_segments: segments of text.
        num_contexts: contexts taken in.
    """

    method: str
    plain_perplexity: float
    perplexities: tuple[float, ...]
    ratio: Estimate
    max_ratio: float
    num_tokens: int
    num_segments: int
    num_contexts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def measure_general_ability(
    base: BaseModel,
    method: Method,
    contexts: Sequence[Context],
    segments: Sequence[Sequence[int]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    loss_of: Callable[[Context], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GeneralAbility:
    """Perplexity of text with each context's state, and its ratio to the base model's.

    Args:
        base: the base model, as it is before any context.
        method: one that can tell its model's losses (`methods.protocol.PredictsText`).
        contexts: taken in one after another.
        segments: token ids without begin-of-sequence tokens, such as `perplexity.held_out_segments` gives them.
        confidence: of the ratio's interval.
        seed: of its bootstrap over contexts.
        loss_of: gives the summed -log P of all segments with a context's state, where it may be at hand already; None:
            `segments_loss`.
        progress: is told the contexts done and in all.

    Raises:
        ConfigError: the method can't predict text.
        DataError: there is no context, or no token to predict.
    """
    if not isinstance(method, PredictsText):
        raise ConfigError(f"{method.name} can't tell how well it predicts text; take one that has text_losses")
    if not contexts:
        raise DataError("general ability needs contexts, got none")
    plain, num_tokens = _total(text_losses(base, segments))
    if not num_tokens:
        raise DataError(f"{len(segments)} segments hold no token to predict; give longer text")
    losses = []
    for number, context in enumerate(contexts, 1):
        losses.append(segments_loss(method, context, segments) if loss_of is None else loss_of(context))
        if progress is not None:
            progress(number, len(contexts))
    ratios = [math.exp((loss - plain) / num_tokens) for loss in losses]
    return GeneralAbility(
        method=method.name,
        plain_perplexity=math.exp(plain / num_tokens),
        perplexities=tuple(math.exp(loss / num_tokens) for loss in losses),
        ratio=bootstrap_mean(ratios, range(len(ratios)), confidence=confidence, seed=seed),
        max_ratio=max(ratios),
        num_tokens=num_tokens,
        num_segments=len(segments),
        num_contexts=len(contexts),
    )


def segments_loss(method: Method, context: Context, segments: Sequence[Sequence[int]]) -> float:
    """Summed -log P of all segments' tokens with a context's state.

    Raises:
        ConfigError: the method can't predict text.
    """
    if not isinstance(method, PredictsText):
        raise ConfigError(f"{method.name} can't tell how well it predicts text; take one that has text_losses")
    return _total(method.text_losses(method.take_in(context), segments))[0]


def _total(losses: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return sum(loss for loss, _ in losses), sum(number for _, number in losses)
