"""A loss on queries that don't tell which words a question has, where its answer begins (`generator.surroundings`).

Leaves out: the queries a generator starts with (`surroundings_start`), and the passes (`passes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from generative_adapter.training.encoder.frozen_states import Asked


def question_word_losses(
    told: Sequence[Tensor], asked: Sequence[tuple[Asked, int]], codes: Mapping[Asked, Tensor]
) -> tuple[Tensor, list[int]]:
    """1 - cos of what the units of each block are told and the code of the question's words, the mean over blocks.

    Args:
        told: that part of each block's queries, `[answer tokens, N]`.
        asked: the question of each answer token, and the token's number in its answer; only the first ones count.
        codes: of each question's words, `[N]`.

    Returns:
        the losses, `[questions]`, and the numbers of their answer tokens.
    """
    firsts = [at for at, (_, number) in enumerate(asked) if number == 0]
    if not firsts:
        return told[0].new_zeros(0), []
    wanted = torch.stack([codes[asked[at][0]] for at in firsts]).to(told[0])
    away = [1 - functional.cosine_similarity(each[firsts], wanted, dim=-1) for each in told]
    return torch.stack(away).mean(0), firsts
