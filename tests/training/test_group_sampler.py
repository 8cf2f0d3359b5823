"""Which passages share a memory and which questions are asked of it, in what order."""

from __future__ import annotations

import copy
import dataclasses
import random

from generative_adapter.training.encoder.groups import GroupSampler
from generative_adapter.training.encoder.loop import EncoderTrainer
from generative_adapter.training.encoder.preparing import prepared_states
from generative_adapter.training.processes import Processes


def test_groups_are_a_function_of_the_step_and_process(recipe, states, embeddings):
    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    again = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    drawn = [sampler.groups(step, rank, 6) for step in range(4) for rank in range(2)]
    assert drawn == [again.groups(step, rank, 6) for step in range(4) for rank in range(2)]
    assert len({str(each) for each in drawn}) == 8
    for groups in drawn:
        for group in groups:
            assert len(set(group.passages)) == len(group.passages) in (2, 9)
            assert not any(states.passages[number].held_out for number in group.passages)
            assert {asked.passage for asked in group.asked} <= set(group.passages)


def test_groups_of_passages_that_are_alike(states, embeddings, recipe):
    """With a share of one all are, with none hardly more than any others."""
    likeness = []
    for share in (1.0, 0.0):
        settings = dataclasses.replace(recipe.encoder_training, alike_share=share, group_passages=(3, 3))
        sampler = GroupSampler(states, embeddings, settings, seed=1)
        near = {n: {each for each in sampler.around(n, 12, None) if each != n} for n in sampler.train}
        groups = [sampler.around(n, 3, random.Random(n)) for n in sampler.train]
        others = [(n, each) for n, group in zip(sampler.train, groups, strict=True) for each in group if each != n]
        likeness.append(sum(each in near[n] for n, each in others) / len(others))
    assert likeness[0] == 1.0 and likeness[1] < 0.8


def test_groups_are_made_around_the_sources_that_are_asked_for(recipe, base, generator, embeddings, tmp_path):
    source = recipe.sources[0]
    two = dataclasses.replace(
        recipe,
        output=str(tmp_path / "two"),
        sources=(source, dataclasses.replace(source, style="chat", share=0.5)),
        encoder_training=dataclasses.replace(
            recipe.encoder_training, group_passages=(1,), group_shares=(1.0,), source_shares=(0.0, 1.0)
        ),
    )
    states = prepared_states(two, base, generator, Processes("cpu"))
    sources = [each.source for each in states.passages]
    assert sorted(set(sources)) == [0, 1] and sources.count(0) > sources.count(1)
    sampler = GroupSampler(states, embeddings, two.encoder_training, seed=0)
    drawn = {
        states.passages[n].source for step in range(20) for each in sampler.groups(step, 0, 3) for n in each.passages
    }
    assert drawn == {1}


def test_a_group_holds_one_passage_of_a_lone_source_at_most(recipe, states, embeddings):
    """Every third passage is of it, alike or not."""
    mixed = copy.copy(states)
    mixed.passages = [dataclasses.replace(each, source=number % 3) for number, each in enumerate(states.passages)]
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {(): [], (2,): []}
    for lone, drawn in groups.items():
        settings = dataclasses.replace(recipe.encoder_training, alike_share=0.5, lone_sources=lone)
        sampler = GroupSampler(mixed, embeddings, settings, seed=1)
        for number in sampler.train:
            drawn += [sampler.around(number, 4, random.Random(f"{number}/{again}")) for again in range(4)]
            drawn.append(sampler.around(number, 4, None))
    counts = {
        lone: [sum(mixed.passages[number].source == 2 for number in group) for group in drawn]
        for lone, drawn in groups.items()
    }
    assert max(counts[()]) > 1
    assert max(counts[(2,)]) == 1
    settings = dataclasses.replace(recipe.encoder_training, alike_share=1.0, lone_sources=(2,))
    sampler = GroupSampler(mixed, embeddings, settings, seed=1)
    lone_ones = [number for number in sampler.train if mixed.passages[number].source == 2]
    assert {len(sampler.around(number, 4, random.Random(number))) for number in lone_ones} == {4}


def test_another_group_seed_draws_other_groups_of_the_same_passages(recipe, base, generator, states):
    def drawn(group_seed: int) -> list[str]:
        settings = dataclasses.replace(recipe.encoder_training, group_seed=group_seed)
        changed = dataclasses.replace(recipe, encoder_training=settings)
        sampler = EncoderTrainer(changed, base, generator, states, describe=never_described).sampler
        assert sampler.held_out == [number for number, each in enumerate(states.passages) if each.held_out]
        return [str(sampler.groups(step, 0, 6)) for step in range(6)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first == again
    assert not set(first) & set(other)


def never_described(progress: object) -> None:
    raise AssertionError("no checkpoint is written here")
