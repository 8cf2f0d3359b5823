"""Token rows with little padding: segments packed into shared rows.

Plain lists in, plain lists out. Leaves out: tensors and objectives (`training.batches`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_MOST_CAPACITIES = 128


def pack(items: Sequence[T], length: Callable[[T], int], capacity: int) -> list[list[T]]:
    """First-fit decreasing: `items` in rows of at most `capacity` tokens; a longer item gets a row of its own."""
    rows: list[list[T]] = []
    room: list[int] = []
    for item in sorted(items, key=length, reverse=True):
        size = length(item)
        for index, left in enumerate(room):
            if size <= left:
                rows[index].append(item)
                room[index] -= size
                break
        else:
            rows.append([item])
            room.append(capacity - size)
    return rows


def best_capacity(groups: Sequence[Sequence[int]], most: int) -> int:
    """The row capacity, at most `most`, at which packing every group on its own computes the fewest tokens.

    Of equally good capacities it is the largest. Up to `_MOST_CAPACITIES` evenly spaced ones are tried, and those that
    divide a group evenly.

    Args:
        groups: segment lengths; segments of different groups never share a row.
        most: upper bound, unless a single segment is longer.
    """
    longest = max(size for group in groups for size in group)
    most = max(longest, most)
    capacities = {max(longest, min(most, -(-sum(group) // parts))) for group in groups for parts in (1, 2, 3, 4)}
    capacities |= {most, *range(longest, most, max(1, (most - longest) // _MOST_CAPACITIES))}

    def computed(capacity: int) -> int:
        rows = [sum(row) for group in groups for row in pack(group, int, capacity)]
        return len(rows) * max(rows)

    return min(capacities, key=lambda capacity: (computed(capacity), -capacity))
