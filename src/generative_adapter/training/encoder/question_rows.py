"""Questions and unrelated text side by side in rows, for one pass through the base model.

Leaves out: which groups ask them (`groups`), and the pass (`passes`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generative_adapter.data.collation import pack
from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates
from generative_adapter.training.encoder.groups import Group

_PROMPT_END = 4  # tokens behind a question or so, which are never dropped, as little as its prompt's first


@dataclass(frozen=True)
class QuestionRows:
    """Questions and unrelated text in rows, for one pass.

    Attributes:
        hidden: what enters the start block, `[rows, tokens, d_h]`.
        segments: 1, 2, ... for the question a token belongs to, 0 for padding, `[rows, tokens]`.
        owners: number of the group whose memory a row reads, `[rows]`.
        supervised: tokens before those to predict, `[rows, tokens]`, bool.
        labels: these, row-major, -1 for those of unrelated text, `[supervised]`.
        questions: the question of each label and the label's number in its answer, None for unrelated text.
        kept_labels: the tokens to predict of unrelated text, row-major, `[kept tokens]`.
        kept_rows: rows of unrelated text, the last ones.
    """

    hidden: Tensor
    segments: Tensor
    owners: Tensor
    supervised: Tensor
    labels: Tensor
    questions: list[tuple[Asked, int] | None]
    kept_labels: Tensor
    kept_rows: int


def question_rows(
    states: FrozenStates,
    groups: Sequence[Group],
    row_tokens: int,
    most_rows: int,
    kept_passages: Sequence[int] = (),
    rng: random.Random | None = None,
    dropout: float = 0.0,
) -> QuestionRows:
    """The questions of all groups in at most `most_rows` rows, those that don't fit left out, and unrelated text.

    Args:
        states: the passages with their states.
        groups: what is asked.
        row_tokens: length of a row.
        most_rows: of questions.
        kept_passages: one for every row of unrelated text; read under the memory of any group.
        rng: decides which, and what is dropped.
        dropout: part of the questions' own tokens that is left out, so that no single word is relied on; the blocks
            below the lowest adapted one have seen them.
    """
    rng = rng or random.Random(0)
    packed: list[tuple[int, list[Asked]]] = []

    def length(asked: Asked) -> int:
        return len(states.passages[asked.passage].questions[asked.number].ids)

    for owner, group in enumerate(groups):
        rows = pack(group.asked, length, row_tokens)
        packed += [(owner, row) for row in rows]
    packed = packed[:most_rows]
    total = len(packed) + len(kept_passages)
    hidden = torch.zeros(total, row_tokens, states.hidden_size, dtype=torch.bfloat16)
    segments = torch.zeros(total, row_tokens, dtype=torch.long)
    supervised = torch.zeros(total, row_tokens, dtype=torch.bool)
    labels: list[int] = []
    questions: list[tuple[Asked, int] | None] = []
    owners = [owner for owner, _ in packed]
    for row, (_, asked_here) in enumerate(packed):
        at = 0
        for number, asked in enumerate(asked_here, start=1):
            question = states.passages[asked.passage].questions[asked.number]
            stays = list(range(len(question.ids)))
            if dropout:
                asks = range(1, question.num_prompt - _PROMPT_END)
                stays = [place for place in stays if place not in asks or rng.random() >= dropout]
            size = len(stays)
            hidden[row, at : at + size] = states.question_states(asked)[stays]
            segments[row, at : at + size] = number
            supervised[row, at + size - question.num_labels - 1 : at + size - 1] = True
            labels += question.ids[question.num_prompt :]
            questions += [(asked, index) for index in range(question.num_labels)]
            at += size
    kept_labels: list[int] = []
    column = states.states.index(states.start_block) * states.hidden_size
    for row, number in enumerate(kept_passages, start=len(packed)):
        own = states.passage_states(number)[:, column : column + states.hidden_size]
        ids = states.passages[number].chunks[0][:row_tokens]
        size = len(ids)
        hidden[row, :size] = own[:size]
        segments[row, :size] = 1
        supervised[row, : size - 1] = True
        labels += [-1] * (size - 1)
        kept_labels += ids[1:]
        questions += [None] * (size - 1)
        owners.append(rng.randrange(len(groups)))
    return QuestionRows(
        hidden,
        segments,
        torch.tensor(owners),
        supervised,
        torch.tensor(labels),
        questions,
        torch.tensor(kept_labels, dtype=torch.long),
        len(kept_passages),
    )
