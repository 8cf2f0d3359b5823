"""Losses of looking words up on frozen states: where the answer stands, and which word is read there.

A lookup is a read of a memory with the inputs that targets have under the plain base model. Its weight of token j is
k_j^T (C + lambda I)^-1 q; a softmax over them tells how well the right token is found, and the sum of the values,
scored against every word, how well the right word is read. Leaves out: the pass through the base model (`passes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative_adapter.config import TargetShape
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.token_units import lone_activation
from generative_adapter.training.encoder.encoding import GroupMemory
from generative_adapter.training.encoder.frozen_states import FrozenStates
from generative_adapter.training.encoder.groups import Group

_ROWS = 64
SHARPNESS = 20.0  # of the softmax over a context's tokens


class WordScores(nn.Module):
    """Scores of all words for what lookups read, and of "nothing", for where an answer ends.

    How often words are used stands in for what the base model would expect there: without it, noise of a sum over all
    tokens is taken for rare words.

    Args:
        embeddings: of the base model, `[words, d_h]`.
        word_proj: P of the generator's values, `[d_v, d_h]`.
        counts: how often each word is used, `[words]`.
    """

    words: Tensor
    expected: Tensor

    def __init__(self, embeddings: Tensor, word_proj: Tensor, counts: Tensor) -> None:
        super().__init__()
        values = embeddings.float() @ word_proj.mT
        values = values - values.mean(0)
        self.register_buffer("words", (values / values.square().mean().sqrt()).to(torch.bfloat16))
        shares = (counts.float() + 0.1) / (counts.float() + 0.1).sum()
        self.register_buffer("expected", shares.log())
        self.sharpness = nn.Parameter(torch.tensor([0.03]))
        self.nothing = nn.Parameter(torch.tensor([-2.0]))

    def forward(self, read: Tensor) -> Tensor:
        """Scores of the words and of nothing, `[reads, words + 1]`, of reads `[reads, d_v]`."""
        scores = (self.sharpness * read).to(self.words.dtype) @ self.words.mT
        return torch.cat([scores.float() + self.expected, self.nothing.expand(len(read), 1)], dim=-1)


@dataclass(frozen=True)
class LookupLosses:
    """What a pass of lookups gave.

    Attributes:
        places: -log of the weight at the right tokens, `[found]`, with gradients.
        words: -log of the score of the right word or of nothing, `[asked]`, with gradients.
        found_first: whether a right token has the largest weight, of first words, `[first]`.
        said_first: whether the right word has the largest score, of first words, `[first]`.
    """

    places: Tensor
    words: Tensor
    found_first: Tensor
    said_first: Tensor


def lookup_losses(
    generator: EncoderGenerator,
    scores: WordScores,
    states: FrozenStates,
    groups: Sequence[Group],
    memories: Sequence[GroupMemory],
    lookup_targets: Sequence[TargetShape],
) -> LookupLosses:
    """Losses of the lookups of all questions of a pass."""
    queries, owners, labels, places = [], [], [], []
    projection = lookup_projection(generator, lookup_targets)
    for at, group in enumerate(groups):
        for asked in group.asked:
            question = states.passages[asked.passage].questions[asked.number]
            inputs = states.lookup_inputs(asked)
            for index in range(len(inputs)):
                ends = index >= question.num_labels - 1
                if not question.found[index] and not ends:
                    continue  # the answer doesn't stand there word for word
                queries.append(inputs[index])
                owners.append(at)
                labels.append(-1 if not question.found[index] else question.ids[question.num_prompt + index])
                first = memories[at].firsts[asked.passage]
                places.append((index == 0, [first + each for each in question.found[index]]))
    device = projection.device
    if not queries:
        none = torch.zeros(0, device=device)
        return LookupLosses(none, none, none, none)
    asked_for = (_filled_up(torch.stack(queries)).to(device) @ projection.to(queries[0].dtype).mT).float()
    owner = torch.tensor(owners)
    reads, place_losses, found_first = [], [], []
    order = []
    for at, memory in enumerate(memories):
        here = (owner == at).nonzero().squeeze(1)
        if not len(here):
            continue
        weights = (asked_for[here.to(device)] @ memory.inverse) @ memory.keys.mT
        reads.append((lone_activation(weights) if generator.keeps_tokens else weights) @ memory.values)
        order += here.tolist()
        right = torch.zeros_like(weights, dtype=torch.bool)
        for row, index in enumerate(here.tolist()):
            right[row, places[index][1]] = True
        known = right.any(-1)
        logits = SHARPNESS * weights[known]
        place_losses.append(logits.logsumexp(-1) - logits.masked_fill(~right[known], -torch.inf).logsumexp(-1))
        first = torch.tensor([places[index][0] for index in here.tolist()], device=device)[known]
        best = logits.detach().argmax(-1)
        found_first.append(right[known].gather(1, best.unsqueeze(1)).squeeze(1)[first])
    label = torch.tensor([labels[index] for index in order], device=device)
    score = scores(_filled_up(torch.cat(reads)))[: len(label)]
    label = torch.where(label < 0, score.shape[-1] - 1, label)
    losses = F.cross_entropy(score, label, reduction="none")
    is_first = torch.tensor([places[index][0] for index in order], device=device)
    said = (score.detach().argmax(-1) == label)[is_first]
    return LookupLosses(torch.cat(place_losses), losses, torch.cat(found_first).float(), said.float())


def lookup_projection(generator: EncoderGenerator, lookup_targets: Sequence[TargetShape]) -> Tensor:
    """What makes one query of the inputs of all lookup targets side by side, `[d_r, d_in of all]`.

    Reads of linears add up, so their queries do; each block of units asks on its own, so theirs are averaged.
    """
    if generator.keeps_tokens:
        blocks = generator.unit_blocks
        return torch.cat([block.scaled_query_proj for block in blocks], dim=1) / len(blocks)
    return torch.cat([generator[target.name].scaled_query_proj for target in lookup_targets], dim=1)


def _filled_up(rows: Tensor) -> Tensor:
    """Rows with zeros after them, up to a multiple of 64: products of ever new shapes are slow on a CPU."""
    return F.pad(rows, (0, 0, 0, -len(rows) % _ROWS))
