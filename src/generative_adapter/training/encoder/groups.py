"""Groups of passages that share a memory, and the questions asked of each: what one pass is made of.

A pass is a function of (seed, step, process), so a resumed run sees what an uninterrupted one would. A part of the
groups hold passages that are alike, as the parts of one document are, the others any. Leaves out: states and losses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates
from generative_adapter.training.encoder.settings import EncoderTraining

_NEIGHBOURS = 3  # times as many as a group takes of those most alike
_TOKENS_TO_SPARE = 6000  # of the passages of all groups of a pass
_LONGEST_GROUP = 5200  # tokens
_BUCKET = 64  # tokens; chunks are batched with others of about their length


@dataclass(frozen=True)
class Group:
    """Passages that are written to one memory.

    Attributes:
        passages: their numbers.
        asked: questions about them.
    """

    passages: tuple[int, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class ReadChunks:
    """Chunks of all groups of a pass, of about the same length.

    Attributes:
        states: of the frozen base model, `[chunks, tokens, (states + 1) * d_h]`, the embeddings first.
        mask: True for real tokens, `[chunks, tokens]`.
        places: number of each real token among those of all groups, row-major, `[real tokens]`.
    """

    states: Tensor
    mask: Tensor
    places: Tensor


class GroupSampler:
    """Draws the groups of a pass.

    Args:
        states: the passages with their states.
        embeddings: of the base model, `[words, d_h]`.
        settings: sizes of groups.
        seed: of the run.
    """

    def __init__(self, states: FrozenStates, embeddings: Tensor, settings: EncoderTraining, seed: int) -> None:
        self.states, self.settings, self.seed = states, settings, seed
        self.train = [number for number, each in enumerate(states.passages) if not each.held_out]
        self.held_out = [number for number, each in enumerate(states.passages) if each.held_out]
        self._by_source: dict[int, list[int]] = {}
        for number in self.train:
            self._by_source.setdefault(states.passages[number].source, []).append(number)
        self._topics = _topics(states, embeddings)
        self._train_numbers = torch.tensor(self.train)
        self._train_sources = torch.tensor([states.passages[number].source for number in self.train])

    def groups(self, step: int, rank: int, num_questions: int) -> list[Group]:
        """The groups of one process's pass: one of many passages, or several of few.

        Args:
            step: of the run.
            rank: number of the process.
            num_questions: about so many are asked in all.
        """
        rng = random.Random(f"{self.seed}/{step}/{rank}")
        size = rng.choices(self.settings.group_passages, self.settings.group_shares)[0]
        groups: list[Group] = []
        asked = tokens = 0
        while not groups or (asked < num_questions and tokens < _TOKENS_TO_SPARE and size <= 8):
            seed_passage = rng.choice(self._seed_source(rng))
            numbers = self.around(seed_passage, size, rng)
            questions = [each for number in numbers for each in self.states.asked[number]]
            rng.shuffle(questions)
            groups.append(Group(numbers, tuple(questions[: num_questions - asked])))
            asked += len(groups[-1].asked)
            tokens += self._num_tokens(numbers)
        return groups

    def _seed_source(self, rng: random.Random) -> list[int]:
        """The passages that a group may be made around: all, or those of a source."""
        shares = self.settings.source_shares
        if not shares:
            return self.train
        kinds = [kind for kind in self._by_source if kind < len(shares) and shares[kind]]
        return self._by_source[rng.choices(kinds, [shares[kind] for kind in kinds])[0]]

    def held_out_group(self, number: int, size: int) -> Group:
        """A held-out passage among those of the training set that are most alike, with its own questions."""
        numbers = self.around(number, size, None)
        return Group(numbers, tuple(self.states.asked[number]))

    def around(self, number: int, size: int, rng: random.Random | None) -> tuple[int, ...]:
        """A passage with size - 1 others, of a lone source one at most; without `rng` those most alike."""
        if rng is None or rng.random() < self.settings.alike_share:
            scores = self._topics[self._train_numbers] @ self._topics[number]
            source = self.states.passages[number].source
            if source in self.settings.lone_sources:
                scores[self._train_sources == source] = -2.0  # below all cosines
            wanted = min(len(self.train), (_NEIGHBOURS if rng else 1) * size + 1)
            near = [self.train[at] for at in scores.topk(wanted).indices.tolist() if self.train[at] != number]
            others = near[: size - 1] if rng is None else rng.sample(near, min(size - 1, len(near)))
        else:
            others = [each for each in rng.sample(self.train, min(size, len(self.train))) if each != number]
        kept, tokens = [number], self._num_tokens([number])
        for other in self._without_lone_twice([number, *others])[1:size]:
            tokens += self._num_tokens([other])
            if tokens > _LONGEST_GROUP:
                break
            kept.append(other)
        if rng is not None:
            rng.shuffle(kept)
        return tuple(kept)

    def _without_lone_twice(self, numbers: Sequence[int]) -> list[int]:
        """These without the passages of a lone source that stand behind another of it."""
        kept, seen = [], set()
        for number in numbers:
            source = self.states.passages[number].source
            if source not in self.settings.lone_sources:
                kept.append(number)
            elif source not in seen:
                seen.add(source)
                kept.append(number)
        return kept

    def _num_tokens(self, numbers: Sequence[int]) -> int:
        return sum(self.states.passages[number].num_tokens for number in numbers)


def read_chunks(states: FrozenStates, embeddings: Tensor, groups: Sequence[Group]) -> list[ReadChunks]:
    """The chunks of all groups with their states, in batches of like length."""
    by_length: dict[int, list[tuple[Tensor, int]]] = {}
    place = 0
    for group in groups:
        for number in group.passages:
            own = states.passage_states(number)
            at = 0
            for chunk in states.passages[number].chunks:
                words = embeddings[torch.tensor(chunk)].to(own.dtype)
                joined = torch.cat([words, own[at : at + len(chunk)]], dim=-1)
                bucket = -(-len(chunk) // _BUCKET) * _BUCKET
                by_length.setdefault(bucket, []).append((joined, place + at))
                at += len(chunk)
            place += at
    batches = []
    for length, rows in sorted(by_length.items()):
        num_rows = len(rows) + len(rows) % 2
        joined = torch.zeros(num_rows, length, rows[0][0].shape[-1], dtype=torch.bfloat16)
        mask = torch.zeros(num_rows, length, dtype=torch.bool)
        places = []
        for row, (own, first) in enumerate(rows):
            joined[row, : len(own)] = own
            mask[row, : len(own)] = True
            places.append(torch.arange(first, first + len(own)))
        batches.append(ReadChunks(joined, mask, torch.cat(places)))
    return batches


def group_places(states: FrozenStates, groups: Sequence[Group]) -> list[tuple[int, dict[int, int], int]]:
    """For each group the number of its first token among those of all groups, that of each passage, and its length."""
    places = []
    start = 0
    for group in groups:
        firsts = {}
        at = start
        for number in group.passages:
            firsts[number] = at
            at += states.passages[number].num_tokens
        places.append((start, firsts, at - start))
        start = at
    return places


def _topics(states: FrozenStates, embeddings: Tensor) -> Tensor:
    """What each passage is about: its words' embeddings, weighted by their rarity, of length one, `[passages, d_h]`."""
    counts = torch.zeros(len(embeddings))
    bags = []
    for each in states.passages:
        words = torch.tensor([word for chunk in each.chunks for word in chunk]).unique()
        counts[words] += 1
        bags.append(words)
    rarity = (len(bags) / (counts + 1)).log().clamp_min(0)
    centred = embeddings.float() - embeddings.float().mean(0)
    centred = torch.nn.functional.normalize(centred, dim=-1)
    found = torch.stack([rarity[words] @ centred[words] for words in bags])
    found = found - found.mean(0)
    return torch.nn.functional.normalize(found, dim=-1)
