"""What new surroundings start with: how rare words are, and queries that tell a question's words where it is answered.

Leaves out: the codes themselves (`generator.surroundings`), and training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.encoder.encoding import GroupMemory, group_memories
from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates, padded
from generative_adapter.training.encoder.groups import Group
from generative_adapter.training.encoder.lookups import SHARPNESS
from generative_adapter.training.encoder.passes import pass_losses
from generative_adapter.training.encoder.question_rows import question_rows

logger = logging.getLogger(__name__)

_MEASURED_PASSAGES = 800
_FITTED_PASSAGES = 1500
_SIZING_GROUPS = 48
_GROUP = 8  # passages of a memory
_ROWS = 48  # of a pass
_RIDGE = 0.3  # of the fitted queries, relative to the inputs' size
_SIZES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0)


@torch.no_grad()
def measure_surroundings(
    generator: EncoderGenerator, base: BaseModel, states: FrozenStates, embeddings: Tensor, counts: Tensor
) -> None:
    """Sets how rare words are and what surroundings are in the mean, by the passages; nothing without surroundings."""
    surroundings = generator.surroundings
    if surroundings is None:
        return
    passages = states.passages
    surroundings.measure(embeddings, counts, sum(each.num_tokens for each in passages) / len(passages))
    chunks = [each.chunks[0] for each in passages[:: max(1, len(passages) // _MEASURED_PASSAGES)]]
    ids, mask = padded([list(each) for each in chunks], pad_id(base.tokenizer))
    ids, mask = ids.to(embeddings.device), mask.to(embeddings.device)
    codes = [surroundings(embeddings[own], real)[real] for own, real in zip(ids.split(16), mask.split(16), strict=True)]
    surroundings.set_mean(torch.cat(codes).mean(0))


def question_codes(generator: EncoderGenerator, states: FrozenStates, embeddings: Tensor) -> dict[Asked, Tensor]:
    """The code of every question's own words, those of the prompt around it left out, `[N]` each."""
    assert generator.surroundings is not None
    prompts = {}
    for asked in (each for own in states.asked for each in own):
        question = states.passages[asked.passage].questions[asked.number]
        prompts[asked] = question.ids[: question.num_prompt]
    start, end = _common(list(prompts.values())), _common([each[::-1] for each in prompts.values()])
    device = generator.key_proj.device
    table = embeddings.to(device)
    with torch.no_grad():
        return {
            asked: generator.surroundings.of_words(table[torch.tensor(each[start : len(each) - end], device=device)])
            for asked, each in prompts.items()
        }


@torch.no_grad()
def fit_surroundings_queries(
    generator: EncoderGenerator, base: BaseModel, states: FrozenStates, embeddings: Tensor, row_tokens: int
) -> None:
    """Sets the rows of unit queries that are for surroundings: which words a question has, told where it is answered.

    Ridge regression over questions of training passages, from the inputs of the gates under the adapter of eight of
    them to the code of the question's words; then made as large as finds answers best in other passages.

    Args:
        generator: with surroundings, trained otherwise.
        base: the frozen base model.
        states: of the passages.
        embeddings: of the base model, `[words, d_h]`.
        row_tokens: length of a row of questions.
    """
    codes = question_codes(generator, states, embeddings)
    learned, blocks = generator.learned_dim, generator.unit_blocks
    for block in blocks:
        block.query_proj[learned:] = 0
    numbers = [n for n, each in enumerate(states.passages) if not each.held_out and states.asked[n]]
    groups = [
        Group(tuple(own), tuple(asked for n in own for asked in states.asked[n]))
        for own in (numbers[at : at + _GROUP] for at in range(0, len(numbers), _GROUP))
    ]
    sizing = groups[:: max(2, len(groups) // _SIZING_GROUPS)]
    others = [each for each in groups if each not in sizing] or groups
    fitted = others[:: max(1, len(others) * _GROUP // _FITTED_PASSAGES)]
    wanted, inputs = [], []
    for group in fitted:
        for asked, gates, _, _ in _first_lookups(generator, base, states, embeddings, group, row_tokens):
            wanted.append(codes[asked])
            inputs.append(gates)
    targets = torch.stack(wanted)
    for at, block in enumerate(blocks):
        scaled = torch.stack([gates[at] for gates in inputs]) * block.input_scales
        gram = scaled.mT @ scaled
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        query = torch.linalg.solve(gram + ridge, scaled.mT @ targets).mT
        told = scaled @ query.mT
        explained = 1 - (targets - told).square().sum() / targets.square().sum()
        logger.info("surroundings told at %s: R^2 %.2f", block.gate.name, explained)
        block.query_proj[learned:] = query / told.norm(dim=-1).mean() / targets.norm(dim=-1).mean()
    losses = torch.zeros(len(_SIZES))
    found = torch.zeros(len(_SIZES))
    for group in sizing:
        for _, gates, memory, places in _first_lookups(generator, base, states, embeddings, group, row_tokens):
            queries = [gate @ block.scaled_query_proj.mT for gate, block in zip(gates, blocks, strict=True)]
            query = torch.stack(queries).mean(0)
            plain = memory.keys[:, :learned] @ (query @ memory.inverse)[:learned]
            told = memory.keys[:, learned:] @ query[learned:]
            for at, size in enumerate(_SIZES):
                scores = SHARPNESS * (plain + size * told)
                losses[at] += (scores.logsumexp(0) - scores[places].logsumexp(0)).cpu()
                found[at] += int(scores.argmax()) in places
    best = int(losses.argmin())
    logger.info(
        "queries for surroundings of size %g: place loss %.3f times, right token first %.0f times instead of %.0f",
        _SIZES[best],
        losses[best] / losses[0],
        found[best],
        found[0],
    )
    for block in blocks:
        block.query_proj[learned:] *= _SIZES[best]


def _first_lookups(
    generator: EncoderGenerator,
    base: BaseModel,
    states: FrozenStates,
    embeddings: Tensor,
    group: Group,
    row_tokens: int,
) -> Iterator[tuple[Asked, list[Tensor], GroupMemory, list[int]]]:
    """Where answers begin that stand in the text: the inputs of the gates, the memory, and the right tokens in it."""
    (memory,) = group_memories(generator, states, embeddings, [group])
    rows = question_rows(states, [group], row_tokens, _ROWS)
    gates: list[Tensor] = []
    with ExitStack() as stack:
        for block in generator.unit_blocks:
            linear = find_linear(base.model, block.gate.name)
            hook = linear.register_forward_pre_hook(lambda _module, args: gates.append(args[0]))
            stack.callback(hook.remove)
        pass_losses(base, generator, states, rows, [memory], (), [])
    for (row, token), each in zip(rows.supervised.nonzero().tolist(), rows.questions, strict=True):
        if each is None or each[1] > 0:
            continue
        asked = each[0]
        found = states.passages[asked.passage].questions[asked.number].found[0]
        if found:
            places = [memory.firsts[asked.passage] + at for at in found]
            yield asked, [gate[row, token].float() for gate in gates], memory, places


def _common(items: Sequence[Sequence[int]]) -> int:
    """How many first numbers all items share."""
    first = items[0]
    shared = min(map(len, items))
    for each in items:
        while first[:shared] != each[:shared]:
            shared -= 1
    return shared
