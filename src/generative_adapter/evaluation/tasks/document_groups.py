"""Documents to groups that average k tokens, and a limited number of questions spread over groups.

Plain arithmetic on sizes and counts. Leaves out: what a document or a question is (`document_qa`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from generative_adapter.config import require


def even_groups(sizes: Sequence[int], mean_size: int) -> list[list[int]]:
    """Consecutive items in groups of about equal size that average about `mean_size`.

    N, the sum of the sizes, is divided by round(N / mean_size), at least one, and by no more than there are items; an
    item belongs to the part in which its middle lies, so that a group is off its part by less than an item. Nothing is
    split: items larger than a part leave fewer and larger groups, and one group remains where N is less than
    `mean_size`.

    Args:
        sizes: of the items, positive.
        mean_size: k.

    Returns:
        The indices of each group's items, in order; every item is in one group, no group is empty.
    """
    require(mean_size > 0, f"context_tokens must be positive, got {mean_size}")
    total = sum(sizes)
    num_parts = min(max(1, round(total / mean_size)), len(sizes))
    groups: dict[int, list[int]] = {}
    before = 0
    for index, size in enumerate(sizes):
        twice_middle = 2 * before + size
        groups.setdefault(twice_middle * num_parts // (2 * total), []).append(index)
        before += size
    return list(groups.values())


def spread(counts: Sequence[int], limit: int | None, seed: int) -> list[list[int]]:
    """Which items of each group are taken, so that `limit` are taken in all and groups differ by one at most.

    Groups take turns, in an order that the seed decides, until the limit is reached; a group that has no more is passed
    over. What a smaller limit takes, a larger one takes too.

    Args:
        counts: how many items each group has.
        limit: how many are taken; None: all.
        seed: decides which.

    Returns:
        Indices of the taken items of each group, in order.
    """
    require(limit is None or limit > 0, f"limit must be positive, got {limit}")
    if limit is None or limit >= sum(counts):
        return [list(range(count)) for count in counts]
    turns = list(range(len(counts)))
    random.Random(f"{seed}/groups").shuffle(turns)
    quotas = [0] * len(counts)
    left = limit
    while left:
        for group in turns:
            if left and quotas[group] < counts[group]:
                quotas[group] += 1
                left -= 1
    taken = []
    for group, (count, quota) in enumerate(zip(counts, quotas, strict=True)):
        order = list(range(count))
        random.Random(f"{seed}/group {group}").shuffle(order)
        taken.append(sorted(order[:quota]))
    return taken
