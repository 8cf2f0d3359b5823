"""How linears that tell places start: in questions each asks for the word it stands at, and tells its place quietly.

Leaves out: how they are trained on (`unit_updates`).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.resumed_pass import resumed_logits
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates, rounded

logger = logging.getLogger(__name__)

_QUESTIONS = 4000
_BATCH = 32  # rows
_RIDGE = 0.02  # of the fitted queries, relative to the inputs' size
_LOUDNESS = 0.8  # of the place of a rare word, beside the linear's own output
_PROMPT_START, _PROMPT_END = 2, 3  # tokens around a question or so, which are no words of it
_COMMON, _RARE = 1.0, 6.0  # log of passages a passage that has the word, from which it counts a little, and fully


@torch.no_grad()
def start_places(generator: EncoderGenerator, base: BaseModel, states: FrozenStates) -> None:
    """Sets queries and outputs of all linears that tell places, from some questions of training passages.

    By ridge regression Q x is about the word u at tokens of questions, from nothing for words that stand in every third
    passage to its full length for those in one of 400, and nothing at other tokens. Outputs O are of random directions.

    Args:
        generator: its word map is set; nothing happens where it has no such linears.
        base: the frozen base model.
        states: of the passages, open for reading.
    """
    readers = generator.reads_of_places
    if not readers:
        return
    asked = [each for own, at in zip(states.passages, states.asked, strict=True) if not own.held_out for each in at]
    asked = random.Random(0).sample(asked, min(_QUESTIONS, len(asked)))
    found = _captured(base, list(readers), states, asked)
    head = base.model.get_input_embeddings()
    assert isinstance(head, nn.Embedding)
    ids = torch.tensor([each for one in asked for each in _words(states, one)], device=base.device)
    is_word = ids >= 0
    words = head.weight.detach()[ids.clamp_min(0)].float() @ generator.word_proj.mT - generator.word_bias
    counts = (rarity(states, head.num_embeddings).to(base.device)[ids.clamp_min(0)] * is_word).unsqueeze(-1)
    wanted = functional.normalize(words, dim=-1) * counts
    for name, reader in readers.items():
        inputs, lengths = found[name].inputs, found[name].lengths
        squares = inputs.square().mean(0).sqrt()
        reader.input_scales.copy_(1 / (squares + 0.01 * squares.mean()))
        scaled = inputs * reader.input_scales
        ridge = _RIDGE * len(scaled) * torch.eye(scaled.shape[1], device=scaled.device)
        query = torch.linalg.solve(scaled.mT @ scaled + ridge, scaled.mT @ wanted).mT
        reader.query_proj.copy_(query)
        directions = torch.linalg.qr(torch.randn(reader.output_proj.shape))[0]
        reader.output_proj.copy_(directions.to(lengths) * (_LOUDNESS * lengths[is_word].mean()))
        left = (wanted - scaled @ query.mT).square().sum() / (wanted - wanted.mean(0)).square().sum()
        logger.info("words at %s: R^2 %.2f", name, 1 - left)


def _words(states: FrozenStates, asked: Asked) -> list[int]:
    """The tokens of a question's words, -1 for those around it."""
    question = states.passages[asked.passage].questions[asked.number]
    stop = question.num_prompt - _PROMPT_END
    return [each if _PROMPT_START <= at < stop else -1 for at, each in enumerate(question.ids)]


def rarity(states: FrozenStates, num_words: int) -> Tensor:
    """How much each word counts, from 0 for those of many passages to 1, `[num_words]`."""
    passages = torch.zeros(num_words)
    for each in states.passages:
        passages[list({word for chunk in each.chunks for word in chunk})] += 1
    logs = math.log(len(states.passages)) - (passages + 1).log()
    return ((logs - _COMMON) / (_RARE - _COMMON)).clamp(0, 1)


@dataclass(frozen=True)
class _Captured:
    """Of all tokens of some rows a linear's inputs, `[tokens, d_in]`, and the lengths of its outputs, `[tokens]`."""

    inputs: Tensor
    lengths: Tensor


def _captured(
    base: BaseModel, names: Sequence[str], states: FrozenStates, asked: Sequence[Asked]
) -> dict[str, _Captured]:
    """What linears get and give under the plain base model at the tokens of questions, in their order."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    lengths: dict[str, list[Tensor]] = {name: [] for name in names}
    real = torch.zeros(0, 0, dtype=torch.bool)

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            inputs[name].append(args[0][real].float())
            lengths[name].append(output[real].float().norm(dim=-1))

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(find_linear(base.model, name).register_forward_hook(keep(name)).remove)
        for at in range(0, len(asked), _BATCH):
            batch = [states.question_states(each) for each in asked[at : at + _BATCH]]
            hidden = torch.zeros(len(batch), rounded(max(map(len, batch))), batch[0].shape[-1], dtype=base.dtype)
            real = torch.zeros(hidden.shape[:2], dtype=torch.bool)
            for row, own in enumerate(batch):
                hidden[row, : len(own)] = own.to(base.dtype)
                real[row, : len(own)] = True
            hidden, real = hidden.to(base.device), real.to(base.device)
            resumed_logits(base.model, states.start_block, hidden, real.long(), torch.zeros_like(real))
    return {name: _Captured(torch.cat(inputs[name]), torch.cat(lengths[name])) for name in names}
