"""A loss on answers that begin with a word of their own question: unlikelihood training (Welleck et al. 2020).

What a question names is seldom its answer, yet a lookup finds best where the question's own words stand. Leaves out:
the losses of right words (`passes`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates

COMMON = 0.005  # of all questions; words in more of them, as "the" is, may well begin an answer
_LEAST_LEFT = 1e-3  # of the probability, so that a sure repeat has a finite loss and a gradient


def own_words(states: FrozenStates) -> dict[Asked, tuple[int, ...]]:
    """Of every question the tokens that its answer should not begin with: its rarer ones that the answer has not."""
    counts: dict[int, int] = {}
    asked = [each for passage in states.asked for each in passage]
    for each in asked:
        question = states.passages[each.passage].questions[each.number]
        for word in set(question.ids[: question.num_prompt]):
            counts[word] = counts.get(word, 0) + 1
    words: dict[Asked, tuple[int, ...]] = {}
    for each in asked:
        question = states.passages[each.passage].questions[each.number]
        prompt, answer = set(question.ids[: question.num_prompt]), set(question.ids[question.num_prompt :])
        words[each] = tuple(sorted(word for word in prompt - answer if counts[word] <= COMMON * len(asked)))
    return words


def repeat_losses(
    logits: Tensor,
    losses: Tensor,
    labels: Tensor,
    questions: Sequence[tuple[Asked, int]],
    words: dict[Asked, tuple[int, ...]],
) -> tuple[Tensor, list[int]]:
    """-log(1 - sum_w P(w)) over a question's own words w, where its answer begins.

    Args:
        logits: of answer tokens, `[tokens, vocabulary]`.
        losses: -log P of the right ones, `[tokens]`, with gradients.
        labels: these, `[tokens]`.
        questions: of each token, and its number in the answer.
        words: of every question, as `own_words` gives them; those of questions without any are left out.

    Returns:
        the losses, `[questions with words]`, and the numbers of their tokens.
    """
    rows = [row for row, (asked, number) in enumerate(questions) if number == 0 and words[asked]]
    if not rows:
        return losses.new_zeros(0), []
    own = [words[questions[row][0]] for row in rows]
    which = torch.tensor([at for at, each in enumerate(own) for _ in each], device=logits.device)
    tokens = torch.tensor([token for each in own for token in each], device=logits.device)
    at = torch.tensor(rows, device=logits.device)
    total = losses[at] + logits[at, labels[at]].to(losses)  # log sum exp of all logits
    shares = (logits[at[which], tokens].to(losses) - total[which]).exp()
    sums = losses.new_zeros(len(rows)).index_add(0, which, shares)
    return -(1 - (1 - _LEAST_LEFT) * sums).log(), rows
