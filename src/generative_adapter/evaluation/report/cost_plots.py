"""Figure 3 of the paper: what taking a context in, answering a query and keeping the context cost, over its length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from generative_adapter.evaluation.report import formats
from generative_adapter.evaluation.report.axes import drawn, length_axis
from generative_adapter.evaluation.report.palette import Style
from generative_adapter.evaluation.result_rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("contextualizing_flops", 1e12, "a context is taken in, TFLOPs"),
    ("answering_flops", 1e12, "a query is answered, TFLOPs"),
    ("stored_bytes", 1e6, "a context is kept, MB"),
)


def costs_over_length(figure: Figure, rows: Sequence[Row], style: Mapping[str, Style]) -> Figure:
    """A panel a phase, both axes logarithmic; a method that spends nothing in a phase has no line there.

    Args:
        figure: to draw on.
        rows: of one data set, split by `context_tokens`.
        style: of each method.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure.set_size_inches(11.4, 4.2)
    panels = figure.subplots(1, len(_PANELS), squeeze=False)[0]
    lengths = sorted({row.split["context_tokens"] for row in rows})
    lines: dict[str, Any] = {}
    for axes, (name, scale, title) in zip(panels, _PANELS, strict=True):
        for method in dict.fromkeys(row.method for row in rows):
            own = sorted((row for row in rows if row.method == method), key=lambda row: row.split["context_tokens"])
            spent = [(row.split["context_tokens"], row.costs[name] or 0.0) for row in own]
            if any(value > 0 for _, value in spent):
                (lines[method],) = axes.plot(
                    [place for place, value in spent if value > 0],
                    [value / scale for _, value in spent if value > 0],
                    color=style[method].colour,
                    marker=style[method].marker,
                    linewidth=1.8,
                )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        length_axis(axes, lengths, "tokens of a context, mean")
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(drawn(formats.heading(rows[0])), x=0.01, ha="left")
    if lines:
        figure.legend(list(lines.values()), [drawn(name) for name in lines], loc="outside right center", frameon=False)
    return figure
