"""What all plots' axes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from generative_adapter.evaluation.report import formats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LETTERS = 60


def length_axis(axes: Axes, places: Sequence[int], label: str) -> None:
    """A logarithmic axis with a tick at each length."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [formats.tokens_label(place) for place in places])
    axes.set_xticks([], minor=True)
    if len(places) == 1:
        axes.set_xlim(places[0] / 2, places[0] * 2)
    axes.set_xlabel(label)


def finish(axes: Axes) -> None:
    """A share's axis from zero, with a light grid and no frame."""
    top = max(1.0, axes.get_ylim()[1])
    axes.set_ylim(-0.02 * top, top)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def drawn(text: str) -> str:
    """A text from data as a plot can draw it: of printable letters, and short."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= _MAX_LETTERS else f"{printable[: _MAX_LETTERS - 1]}…"
