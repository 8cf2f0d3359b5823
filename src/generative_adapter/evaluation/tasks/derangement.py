"""A permutation without forbidden pairs, drawn by seed: who gets whose document.

Leaves out: what makes a pair forbidden (`controls`).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence


def derangement(forbidden: Sequence[Collection[int]], seed: int) -> list[int] | None:
    """For each index i another one, each used once, that is not in `forbidden[i]`.

    A perfect matching by augmenting paths over a random order of candidates, so one is found wherever there is one.

    Args:
        forbidden: for each index those it must not get, itself among them.
        seed: decides which permutation.

    Returns:
        The permutation; None where there is none.
    """
    count = len(forbidden)
    draw = random.Random(f"{seed}/derangement")
    order = list(range(count))
    draw.shuffle(order)
    starts = [draw.randrange(count) for _ in range(count)]
    given = [-1] * count  # to each index
    taker = [-1] * count  # of each index
    for first in range(count):
        reached_by: dict[int, int] = {}  # candidate -> who would take it
        waiting, free = [first], None
        for index in waiting:
            for place in range(count):
                candidate = order[(starts[index] + place) % count]
                if candidate in reached_by or candidate in forbidden[index]:
                    continue
                reached_by[candidate] = index
                if taker[candidate] < 0:
                    free = candidate
                    break
                waiting.append(taker[candidate])
            if free is not None:
                break
        if free is None:
            return None
        while True:
            index = reached_by[free]
            given[index], taker[free], free = free, index, given[index]
            if index == first:
                break
    return given
