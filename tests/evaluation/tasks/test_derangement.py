"""Permutations without forbidden pairs, against all permutations."""

from __future__ import annotations

import itertools
import random

import pytest

from generative_adapter.evaluation.tasks.derangement import derangement


def allowed(permutation, forbidden) -> bool:
    return all(given not in forbidden[index] for index, given in enumerate(permutation))


@pytest.mark.parametrize("seed", range(60))
def test_one_is_found_exactly_where_there_is_one(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 6)
    share = draw.random()
    forbidden = [{i, *(j for j in range(count) if draw.random() < share)} for i in range(count)]
    exists = any(allowed(each, forbidden) for each in itertools.permutations(range(count)))
    found = derangement(forbidden, seed)
    assert (found is not None) == exists
    if found is not None:
        assert sorted(found) == list(range(count)) and allowed(found, forbidden)


def test_seeds_give_different_ones_and_the_same_seed_the_same() -> None:
    forbidden = [{i} for i in range(50)]
    found = [tuple(derangement(forbidden, seed) or ()) for seed in range(5)]
    assert len(set(found)) == 5 and found[2] == tuple(derangement(forbidden, 2) or ())
    assert derangement([], 0) == [] and derangement([{0}], 0) is None


def test_long_chains_are_turned_round() -> None:
    """Each may only have the next: the one permutation that remains is found among 2,000."""
    count = 2000
    everything = set(range(count))
    forbidden = [everything - {(i + 1) % count, (i + 2) % count} for i in range(count - 1)] + [everything - {0}]
    found = derangement(forbidden, 7)
    assert found is not None and sorted(found) == list(range(count)) and allowed(found, forbidden)
