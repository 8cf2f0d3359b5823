"""Even groups and spread questions: what holds for any sizes, and cases by hand."""

from __future__ import annotations

import random

import pytest

from generative_adapter.errors import ConfigError
from generative_adapter.evaluation.tasks.document_groups import even_groups, spread


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_consecutive_and_even(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 40) for _ in range(draw.randint(1, 60))]
    mean_size = draw.randint(1, 200)
    groups = even_groups(sizes, mean_size)
    assert [index for group in groups for index in group] == list(range(len(sizes)))
    assert all(groups)
    parts = min(max(1, round(sum(sizes) / mean_size)), len(sizes))
    assert len(groups) <= parts
    for group in groups:
        assert abs(sum(sizes[index] for index in group) - sum(sizes) / parts) <= max(sizes)


def test_groups_by_hand() -> None:
    # 60 tokens, k = 20: three parts [0, 20), [20, 40), [40, 60); middles 5, 15, 25, 35, 45, 55
    assert even_groups([10] * 6, 20) == [[0, 1], [2, 3], [4, 5]]
    # 60 tokens, two parts of 30: middles 12.5, 27.5, 32.5, 47.5
    assert even_groups([25, 5, 5, 25], 30) == [[0, 1], [2, 3]]
    # 17 tokens, k = 7: round(2.43) = 2 parts of 8.5: middles 2.5, 7.5, 13.5
    assert even_groups([5, 5, 7], 7) == [[0, 1], [2]]
    # all fits in one
    assert even_groups([5, 5, 7], 1000) == [[0, 1, 2]]
    # 110 tokens, k = 10: no more parts than items; middles 50, 105 of 2 parts of 55
    assert even_groups([100, 10], 10) == [[0], [1]]
    # one item holds the middles of no other part: 3 parts of 36.7; middles 2.5, 55, 107.5
    assert even_groups([5, 100, 5], 10) == [[0], [1], [2]]
    # 4 parts of 25.25 for sizes 98, 1, 1, 1: middles 49, 98.5, 99.5, 100.5: parts 1 and 3
    assert even_groups([98, 1, 1, 1], 10) == [[0], [1, 2, 3]]
    with pytest.raises(ConfigError, match="context_tokens must be positive, got 0"):
        even_groups([1], 0)


def test_questions_are_spread_evenly() -> None:
    counts = [10, 0, 1, 7, 10]
    assert spread(counts, None, 0) == [list(range(count)) for count in counts]
    assert spread(counts, 28, 0) == spread(counts, None, 0)
    taken = spread(counts, 13, 0)
    # one from the group of one; the other twelve in fours
    assert [len(group) for group in taken] == [4, 0, 1, 4, 4]
    assert all(
        group == sorted(set(group)) and all(0 <= i < n for i in group) for group, n in zip(taken, counts, strict=True)
    )
    assert taken == spread(counts, 13, 0)
    assert taken != spread(counts, 13, 1)
    assert sorted(map(len, spread(counts, 2, 0))) == [0, 0, 0, 1, 1]
    # no group is always first: the seed decides on which a single question falls
    assert {tuple(map(len, spread([5, 5, 5], 1, seed))).index(1) for seed in range(20)} == {0, 1, 2}


def test_a_larger_limit_keeps_what_a_smaller_one_took() -> None:
    counts = [3, 9, 4]
    before = [set(), set(), set()]
    for limit in range(1, 17):
        taken = [set(group) for group in spread(counts, limit, 5)]
        assert sum(map(len, taken)) == limit
        assert all(small <= large for small, large in zip(before, taken, strict=True))
        before = taken


def test_a_limit_is_positive() -> None:
    with pytest.raises(ConfigError, match="limit must be positive, got 0"):
        spread([1], 0, 0)
