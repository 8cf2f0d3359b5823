"""Values of held-out passages: sums over batches and processes, and what they come to.

Leaves out: which passages are held out, and the passes (`loop`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from generative_adapter.training.encoder.lookups import LookupLosses
from generative_adapter.training.encoder.passes import PassLosses

_COUNTS = {
    "answer_loss": "answer_tokens",
    "exact": "questions",
    "first": "questions",
    "right": "answer_tokens",
    "kept_loss": "kept_tokens",
    "kept_text_rise": "kept_tokens",
    "word_loss": "words",
    "found_first": "found_firsts",
    "said_first": "said_firsts",
}


def pass_sums(found: PassLosses) -> dict[str, float]:
    """Sums over a pass: of losses, of right answer tokens, and of questions with the right answer or its first word."""
    device = found.correct.device
    every = torch.ones(int(found.question.max()) + 1, device=device)
    exact = every.scatter_reduce(0, found.question, found.correct.float(), "amin")
    first = torch.tensor([index == 0 for index in _numbers(found.question.tolist())], device=device)
    return {
        "answer_loss": found.answers.sum().item(),
        "answer_tokens": float(len(found.answers)),
        "right": found.correct.float().sum().item(),
        "kept_loss": found.kept.sum().item(),
        "kept_text_rise": found.text.sum().item(),
        "kept_tokens": float(len(found.kept)),
        "exact": exact.sum().item(),
        "first": found.correct[first].float().sum().item(),
        "questions": float(len(every)),
    }


def lookup_sums(found: LookupLosses) -> dict[str, float]:
    """Sums of lookups: `word_loss`, and of first words those found and those said."""
    return {
        "word_loss": found.words.sum().item(),
        "words": float(len(found.words)),
        "found_first": found.found_first.sum().item(),
        "found_firsts": float(len(found.found_first)),
        "said_first": found.said_first.sum().item(),
        "said_firsts": float(len(found.said_first)),
    }


def means(sums: Mapping[str, float]) -> dict[str, Any]:
    """What sums over all batches come to."""
    return {name: sums[name] / sums[count] for name, count in _COUNTS.items() if sums.get(count)}


def _numbers(question: Sequence[int]) -> list[int]:
    """The number of each label within its question."""
    seen: dict[int, int] = {}
    numbers = []
    for each in question:
        numbers.append(seen.get(each, 0))
        seen[each] = numbers[-1] + 1
    return numbers
