"""Packing: nothing is lost, rows hold what they may, and little is padding."""

import random

import pytest

from generative_adapter.data.collation import best_capacity, pack


def computed_tokens(groups: list[list[int]], capacity: int) -> int:
    """Tokens that are computed when all rows are padded to the longest."""
    rows = [sum(row) for group in groups for row in pack(group, int, capacity)]
    return len(rows) * max(rows)


def random_lengths(count: int, most: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(1, most) for _ in range(count)]


def test_first_fit_decreasing_by_hand() -> None:
    assert pack([2, 7, 5, 1, 4, 3], int, 8) == [[7, 1], [5, 3], [4, 2]]
    assert pack([3, 3, 3, 3], int, 6) == [[3, 3], [3, 3]]
    assert pack([], int, 8) == []


def test_items_that_are_equally_long_keep_their_order() -> None:
    assert pack(["bb", "aa", "cc", "d"], len, 5) == [["bb", "aa", "d"], ["cc"]]


def test_an_item_longer_than_a_row_gets_its_own() -> None:
    assert pack([9, 2, 12, 3], int, 5) == [[12], [9], [3, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_every_item_is_packed_once_and_rows_fit(seed: int) -> None:
    lengths = random_lengths(61, 40, seed)
    items = list(enumerate(lengths))
    rows = pack(items, lambda item: item[1], 47)
    assert sorted(item for row in rows for item in row) == items
    sizes = [sum(length for _, length in row) for row in rows]
    assert max(sizes) <= 47
    # First fit: no item of a later row would have fitted into an earlier one.
    for later in range(1, len(rows)):
        for earlier in range(later):
            assert sizes[earlier] + min(length for _, length in rows[later]) > 47
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 47) + 1


def test_segments_of_one_length_are_packed_without_padding() -> None:
    groups = [[7] * 6, [7] * 3, [7] * 9]
    capacity = best_capacity(groups, 21)
    assert capacity == 21 and computed_tokens(groups, capacity) == 7 * 18


@pytest.mark.parametrize("seed", range(8))
def test_the_best_capacity_is_the_best_of_all(seed: int) -> None:
    """Against trying every capacity there is."""
    draw = random.Random(seed)
    groups = [random_lengths(draw.randint(1, 8), 30, seed * 100 + number) for number in range(draw.randint(1, 9))]
    longest = max(size for group in groups for size in group)
    capacity = best_capacity(groups, 112)
    assert longest <= capacity <= 112
    fewest = min(computed_tokens(groups, candidate) for candidate in range(longest, 113))
    assert computed_tokens(groups, capacity) == fewest


def test_a_single_long_segment_raises_the_bound() -> None:
    assert best_capacity([[200], [3, 4]], 50) == 200
    assert best_capacity([[200]], 50) == 200


def test_groups_never_share_a_row() -> None:
    """Three groups of one short segment make three rows, however wide a row may be."""
    assert computed_tokens([[5], [5], [5]], best_capacity([[5], [5], [5]], 100)) == 15
