"""The loss of lookups that miss the tokens of the context which an answer is read from.

Leaves out: the passes that ask (`passes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from generative_adapter.training.encoder.encoding import GroupMemory
from generative_adapter.training.encoder.frozen_states import FrozenStates
from generative_adapter.training.encoder.lookups import SHARPNESS
from generative_adapter.training.encoder.question_rows import QuestionRows


def place_losses(
    states: FrozenStates, rows: QuestionRows, memories: Sequence[GroupMemory], queries: Tensor
) -> tuple[Tensor, list[int]]:
    """-log of the softmax of a lookup's weights at the right tokens, of every answer token that stands in its text.

    Returns:
        the losses, and the number of the answer token of each.
    """
    places: Mapping[int, list[int]]
    answer_rows = rows.supervised.nonzero()[:, 0][rows.labels >= 0]
    owners = rows.owners[answer_rows]
    asked = [each for each in rows.questions if each is not None]
    losses: list[Tensor] = []
    tokens: list[int] = []
    for at, memory in enumerate(memories):
        chosen = []
        places = {}
        for index in (owners == at).nonzero().squeeze(1).tolist():
            question, number = asked[index]
            found = states.passages[question.passage].questions[question.number].found[number]
            if found:
                places[len(chosen)] = [memory.firsts[question.passage] + each for each in found]
                chosen.append(index)
        if not chosen:
            continue
        tokens += chosen
        weights = (queries[torch.tensor(chosen)] @ memory.inverse) @ memory.keys.mT
        right = torch.zeros_like(weights, dtype=torch.bool)
        for row, own in places.items():
            right[row, own] = True
        scores = SHARPNESS * weights
        losses.append(scores.logsumexp(-1) - scores.masked_fill(~right, -torch.inf).logsumexp(-1))
    return (torch.cat(losses) if losses else queries.new_zeros(0)), tokens
