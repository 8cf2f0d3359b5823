"""One colour and one marker a method, the same in every plot.

The hues are Okabe and Ito's and Tol's, which people with any colour vision tell apart; where a method comes as LoRA and
as full fine-tuning, the second is a darker shade with another marker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: as #rrggbb, legible on white.
        marker: matplotlib's letter.
    """

    colour: str
    marker: str


_KNOWN = {
    "closed-book": Style("#6b6b6b", "o"),
    "full-context": Style("#0072b2", "s"),
    "full-context-cached": Style("#3d9fd6", "D"),
    "generative-adapter": Style("#d55e00", "^"),
    "sft-lora": Style("#009e73", "v"),
    "sft-full": Style("#00573f", "<"),
    "cpt-lora": Style("#cc79a7", "P"),
    "cpt-full": Style("#8a3b67", "X"),
    "k-shot-lora": Style("#c98500", ">"),
    "k-shot-full": Style("#6f4a00", "h"),
    "ultragist": Style("#882255", "*"),
    "cmt": Style("#332288", "p"),
}
_OTHERS = (
    Style("#117733", "d"), Style("#aa4499", "H"), Style("#44aa99", "8"), Style("#999933", "x"),
    Style("#cc6677", "+"), Style("#000000", "1"),
)  # fmt: skip


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method; names that aren't known get theirs in alphabetical order."""
    names = set(methods)
    others = sorted(names - _KNOWN.keys())
    return {
        **{name: style for name, style in _KNOWN.items()},
        **{name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(others)},
    }
