"""The plots of a report, like the paper's figures 2, 3 (`cost_plots`) and 4, and a needle's heat map; PNG and SVG.

Drawn with matplotlib's objects on an Agg canvas, without pyplot's global state. The same rows give the same SVG, byte
for byte, with the same matplotlib. Backgrounds are white, so that plots are legible on a dark page. Leaves out: where
files go (`writing`).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generative_adapter.errors import MissingDependencyError
from generative_adapter.evaluation.metrics import Estimate
from generative_adapter.evaluation.report import formats, published
from generative_adapter.evaluation.report.axes import drawn, finish, length_axis
from generative_adapter.evaluation.report.cost_plots import costs_over_length
from generative_adapter.evaluation.report.palette import Style, styles
from generative_adapter.evaluation.report.tables import rows_by_heading
from generative_adapter.evaluation.result_rows import Average, Row
from generative_adapter.evaluation.summary import Summary
from generative_adapter.evaluation.task_averages import GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "generative-adapter",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # names from data may hold dollar signs
}
_PANEL_TITLES = {"classification": "classification tasks", "other": "other tasks", "all": "all tasks"}
_LABEL_GAP = 0.052  # of the axes' height between two labels of lines


@dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
        name: of its files, without ending.
        title: what it shows, in a sentence.
        topic: of the tables that it belongs to.
        png: the file's bytes.
        svg: the file's bytes.
    """

    name: str
    title: str
    topic: str
    png: bytes
    svg: bytes


def all_plots(summary: Summary, *, with_published: bool = True) -> list[Plot]:
    """Every plot that the rows give.

    Args:
        summary: the rows.
        with_published: whether published curves stand beside one's own, thin and dashed.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "plots and the HTML report need the package matplotlib; pip install 'generative-adapter[eval]'"
        ) from error
    style = styles(row.method for row in summary.rows)
    plots: list[Plot] = []

    def add(name: str, title: str, topic: str, figure: Figure) -> None:
        file_name = _file_name(name)
        number = sum(plot.name == file_name or plot.name.startswith(f"{file_name}-again-") for plot in plots)
        file_name = f"{file_name}-again-{number}" if number else file_name
        plots.append(Plot(file_name, title, topic, _bytes(figure, "png"), _bytes(figure, "svg")))

    with matplotlib.rc_context(_SETTINGS):
        for rows in rows_by_heading(summary.rows).values():
            title, topic, metric = formats.heading(rows[0]), formats.family(rows[0]), rows[0].metrics[0]
            label = formats.metric_label(metric)
            if formats.is_averaged(rows[0]):
                continue
            if "depth" in rows[0].split and "context_tokens" in rows[0].split:
                for method in dict.fromkeys(row.method for row in rows):
                    own = [row for row in rows if row.method == method]
                    figure = _heat_map(Figure(layout="constrained"), own, metric, f"{title}: {method}")
                    add(f"{title}-{method}", f"{title}, {method}: {label} over length and depth", topic, figure)
            elif set(rows[0].split) == {"context_tokens"}:
                figure = _over_length(Figure(layout="constrained"), rows, metric, style, with_published)
                told = f"{title}: {label} over the length of the context. Bands: 95 % bootstrap intervals over contexts"
                dashed = with_published and metric == "f1" and published.data_set_of(formats.data_set(rows[0]))
                told += f". Dashed: published for {published.MODEL}, another model" if dashed else ""
                add(title, told, topic, figure)
                if len({row.split["context_tokens"] for row in rows}) > 1:
                    figure = costs_over_length(Figure(layout="constrained"), rows, style)
                    add(f"{title}-costs", f"{title}: costs over the length of the context, by formulas", topic, figure)
            elif rows[0].task.split("/", 1)[0] == "personalisation":
                figure = _over_operations(Figure(layout="constrained"), rows, metric, style)
                add(
                    title,
                    f"{title}: {label} against operations a query. Bars: 95 % bootstrap intervals over contexts",
                    topic,
                    figure,
                )
        if summary.averages:
            figure = _over_shots(Figure(layout="constrained"), summary.averages, style)
            add(
                "metaicl",
                "MetaICL: accuracy over the number of demonstrations. Bands: ± one standard deviation over draws",
                "MetaICL",
                figure,
            )
    return plots


def _over_length(
    figure: Figure, rows: Sequence[Row], metric: str, style: Mapping[str, Style], with_published: bool
) -> Figure:
    """Figure 2: a line a method, its interval as a band."""
    figure.set_size_inches(7.6, 4.4)
    axes = figure.subplots()
    lengths = sorted({row.split["context_tokens"] for row in rows})
    labels: list[tuple[float, str, str]] = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [(row.split["context_tokens"], row.values[metric]) for row in rows
               if row.method == method and metric in row.values]  # fmt: skip
        if own:
            _line(axes, own, style[method])
            labels.append((100 * own[-1][1].mean, drawn(method), style[method].colour))
    known = published.data_set_of(formats.data_set(rows[0])) if with_published and metric == "f1" else None
    curves = published.DOCUMENT_QA.get(known or "", ()) if formats.family(rows[0]) == "Document QA" else ()
    for curve in curves:
        sizes = [size for size in sorted(curve.values) if lengths[0] <= size <= lengths[-1]]
        if sizes:
            colour = style[curve.method].colour
            axes.plot(sizes, [curve.values[size] for size in sizes], color=colour, linewidth=0.9, linestyle="--")
            labels.append((curve.values[sizes[-1]], f"{curve.label} (7B, published)", colour))
    axes.set_title(drawn(formats.heading(rows[0])), loc="left")
    length_axis(axes, lengths, "tokens of a context, mean")
    axes.set_ylabel(f"{formats.metric_label(metric)}, %")
    finish(axes)
    _label_lines(axes, labels)
    return figure


def _over_shots(figure: Figure, averages: Sequence[Average], style: Mapping[str, Style]) -> Figure:
    """Figure 4: a panel a group of tasks; bands are one standard deviation over draws."""
    groups = [group for group in GROUPS if any(average.group == group for average in averages)]
    figure.set_size_inches(1.8 + 3.4 * len(groups), 4.2)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    lines: dict[str, Any] = {}
    for axes, group in zip(panels, groups, strict=True):
        own = [average for average in averages if average.group == group]
        for method in dict.fromkeys(average.method for average in own):
            points = [(average.shots, _spread(average)) for average in own if average.method == method]
            lines[method] = _line(axes, points, style[method])
        axes.set_title(f"{_PANEL_TITLES[group]} ({max(len(average.tasks) for average in own)})", loc="left")
        length_axis(axes, sorted({average.shots for average in own}), "demonstrations, K")
        finish(axes)
    panels[0].set_ylabel("accuracy, mean over tasks, %")
    last = {average.method: average.mean for average in averages if average.group == groups[-1]}
    order = sorted(lines, key=lambda method: -last.get(method, 0.0))
    figure.legend(
        [lines[name] for name in order], [drawn(name) for name in order], loc="outside right center", frameon=False
    )
    return figure


def _over_operations(figure: Figure, rows: Sequence[Row], metric: str, style: Mapping[str, Style]) -> Figure:
    """Quality against operations a query: up and to the left is better."""
    from matplotlib.ticker import LogLocator

    figure.set_size_inches(7.2, 4.2)
    axes = figure.subplots()
    told = [row for row in rows if row.costs.get("answering_flops") and metric in row.values]
    for row in sorted(told, key=lambda row: -row.values[metric].mean):
        axes.errorbar(
            [(row.costs["answering_flops"] or 0.0) / 1e12],
            [100 * row.values[metric].mean],
            yerr=_error(row.values[metric]),
            color=style[row.method].colour,
            marker=style[row.method].marker,
            markersize=8,
            capsize=3,
            linestyle="none",
            label=drawn(", ".join(filter(None, (row.method, formats.split_label(row.split))))),
        )
    operations = [row.costs["answering_flops"] or 0.0 for row in told]
    if told and max(operations) > 4 * min(operations):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.12, y=0.12)
    axes.set_title(drawn(formats.heading(rows[0])), loc="left")
    axes.set_xlabel("TFLOPs a query")
    axes.set_ylabel(f"{formats.metric_label(metric)}, %")
    finish(axes)
    if told:
        figure.legend(loc="outside right center", frameon=False)
    return figure


def _heat_map(figure: Figure, rows: Sequence[Row], metric: str, title: str) -> Figure:
    """Depth down, length to the right; every cell says its number."""
    lengths = sorted({row.split["context_tokens"] for row in rows})
    depths = sorted({row.split["depth"] for row in rows})
    figure.set_size_inches(2.4 + 0.8 * len(lengths), 1.6 + 0.42 * len(depths))
    axes = figure.subplots()
    at = {(row.split["depth"], row.split["context_tokens"]): row.values.get(metric) for row in rows}
    values = [
        [100 * found.mean if (found := at.get((depth, length))) else float("nan") for length in lengths]
        for depth in depths
    ]
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for down, line in enumerate(values):
        for right, value in enumerate(line):
            if value == value:
                axes.text(
                    right, down, f"{value:.0f}", ha="center", va="center", color="black" if value > 55 else "white"
                )
    axes.set_xticks(range(len(lengths)), [formats.tokens_label(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set_xlabel("tokens of a context")
    axes.set_ylabel("depth of the needle")
    axes.set_title(drawn(title), loc="left", fontsize=10)
    figure.colorbar(image, label=f"{formats.metric_label(metric)}, %")
    return figure


def _line(axes: Axes, points: Sequence[tuple[float, Estimate]], style: Style) -> Any:
    places = [place for place, _ in points]
    (line,) = axes.plot(
        places, [100 * each.mean for _, each in points], color=style.colour, marker=style.marker, linewidth=1.8
    )
    low = [100 * (each.mean if each.low is None else each.low) for _, each in points]
    high = [100 * (each.mean if each.high is None else each.high) for _, each in points]
    if len(points) > 1:
        axes.fill_between(places, low, high, color=style.colour, alpha=0.15, linewidth=0)
    else:
        axes.vlines(places, low, high, color=style.colour, alpha=0.4)
    return line


def _spread(average: Average) -> Estimate:
    deviation = average.draws.standard_deviation if average.draws else None
    ends = (None, None) if deviation is None else (average.mean - deviation, average.mean + deviation)
    return Estimate(average.mean, *ends, len(average.tasks), len(average.tasks))


def _error(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [[100 * max(0.0, estimate.mean - estimate.low)], [100 * max(0.0, estimate.high - estimate.mean)]]


def _label_lines(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names at the lines' ends, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    places: list[float] = []
    ordered = sorted(labels)
    for value, _, _ in ordered:
        wanted = (value - low) / (high - low)
        places.append(max(wanted, places[-1] + _LABEL_GAP) if places else wanted)
    shift = max(0.0, places[-1] - 1.0) if places else 0.0
    for place, (_, text, colour) in zip(places, ordered, strict=True):
        axes.annotate(
            text, (1.0, place - shift), (6, 0), xycoords="axes fraction", textcoords="offset points", color=colour,
            fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip


def _bytes(figure: Figure, ending: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": "generative-adapter"} if ending == "svg" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a data set's name in another script
        figure.savefig(buffer, format=ending, dpi=150, metadata=metadata, facecolor="white")
    return buffer.getvalue()


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "plot"
