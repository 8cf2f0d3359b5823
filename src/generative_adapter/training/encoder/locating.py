"""How units that locate words start: each looks up the word it stands at, in questions, and tells its place quietly.

Leaves out: how they are trained on (`unit_updates`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.resumed_pass import resumed_logits
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.token_units import TokenUnits, lone_response
from generative_adapter.training.encoder.frozen_states import FrozenStates, rounded

logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")

_QUESTIONS, _PASSAGES = 1500, 200
_LONGEST = 128  # tokens of a row
_BATCH = 32  # rows
_RIDGE = 0.02  # of the fitted queries, relative to the inputs' size
_LOUDNESS = 0.15  # of what a place adds to the hidden state, beside its length
_PROMPT_START, _PROMPT_END = 2, 3  # tokens around a question or so, which are no words of it


@torch.no_grad()
def start_locating(generator: EncoderGenerator, base: BaseModel, states: FrozenStates) -> None:
    """Sets queries, offsets and outputs of all blocks that locate words, from some questions and passages.

    By ridge regression Q x is about the key of the token's word at tokens of questions, and nothing in passages; c.x is
    minus the threshold at the former (`TokenUnits.set_offset`). Outputs are of random directions.

    Args:
        generator: has such blocks; its word map is set.
        base: the frozen base model.
        states: of the passages, held open.
    """
    places = generator.places
    if places is None:
        return
    rng = random.Random(0)
    train = [number for number, each in enumerate(states.passages) if not each.held_out]
    asked = [each for number in train for each in states.asked[number]]
    rows = [
        (states.question_states(each), _question_ids(states, each.passage, each.number))
        for each in _some(rng, asked, _QUESTIONS)
    ]
    column = slice(states.states.index(states.start_block) * states.hidden_size, None)
    for number in _some(rng, train, _PASSAGES):
        own = states.passage_states(number)[:_LONGEST, column][:, : states.hidden_size]
        rows.append((own, [-1] * len(own)))
    head = base.model.get_input_embeddings()
    assert isinstance(head, nn.Embedding)
    embeddings = head.weight.detach().float()
    found = _captured(base, generator.locating_blocks, states.start_block, rows)
    ids = torch.tensor([each for _, own in rows for each in own], device=base.device)
    is_word = ids >= 0
    wanted = torch.zeros(len(ids), len(places.word_proj), device=base.device)
    words = embeddings[ids[is_word]] @ generator.word_proj.mT - generator.word_bias
    wanted[is_word] = places.words(words)
    for block in generator.locating_blocks:
        inputs, lengths = found[block.gate.name]
        scaled = inputs * block.input_scales
        ridge = _RIDGE * len(scaled) * torch.eye(scaled.shape[1], device=scaled.device)
        query = torch.linalg.solve(scaled.mT @ scaled + ridge, scaled.mT @ wanted).mT
        own = (scaled[is_word] @ query.mT * wanted[is_word]).sum(-1)
        block.query_proj.copy_(query / own.mean())
        block.set_offset(inputs[is_word], inputs[~is_word])
        directions = torch.linalg.qr(torch.randn(block.down.out_features, block.output_proj.shape[1]))[0]
        size = _LOUDNESS * lengths[is_word].mean() / lone_response()
        block.output_proj.copy_(directions.to(size) * size)
        rest = (own / own.mean() - 1).std()
        logger.info("%s: own words' lookups vary by %.2f", block.gate.name, rest)


def _question_ids(states: FrozenStates, passage: int, number: int) -> list[int]:
    """The tokens of a question's words, -1 for those around it."""
    question = states.passages[passage].questions[number]
    stop = question.num_prompt - _PROMPT_END
    return [each if _PROMPT_START <= at < stop else -1 for at, each in enumerate(question.ids)]


def _some(rng: random.Random, items: Sequence[_Item], most: int) -> list[_Item]:
    return rng.sample(items, min(most, len(items)))


def _captured(
    base: BaseModel, blocks: Sequence[TokenUnits], start_block: int, rows: Sequence[tuple[Tensor, list[int]]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs of the blocks' gates and lengths of the hidden states behind them, of the rows' tokens in their order."""
    inputs: dict[str, list[Tensor]] = {block.gate.name: [] for block in blocks}
    lengths: dict[str, list[Tensor]] = {block.gate.name: [] for block in blocks}
    names = {block.gate.layer: block.gate.name for block in blocks}
    modules = find_blocks(base.model)[1]
    real = torch.zeros(0, 0, dtype=torch.bool)

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[name].append(args[0][real].float())

        return hook

    def measure(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            lengths[name].append(after[real].float().norm(dim=-1))

        return hook

    with ExitStack() as stack:
        for layer, name in names.items():
            stack.callback(modules[layer].register_forward_hook(measure(name)).remove)
            stack.callback(find_linear(base.model, name).register_forward_pre_hook(keep(name)).remove)
        for at in range(0, len(rows), _BATCH):
            batch = [own for own, _ in rows[at : at + _BATCH]]
            hidden = torch.zeros(len(batch), rounded(max(map(len, batch))), batch[0].shape[-1], dtype=base.dtype)
            real = torch.zeros(hidden.shape[:2], dtype=torch.bool)
            for row, own in enumerate(batch):
                hidden[row, : len(own)] = own.to(base.dtype)
                real[row, : len(own)] = True
            hidden, real = hidden.to(base.device), real.to(base.device)
            resumed_logits(base.model, start_block, hidden, real.long(), torch.zeros_like(real))
    return {name: (torch.cat(inputs[name]), torch.cat(lengths[name])) for name in inputs}
