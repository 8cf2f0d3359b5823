"""How numbers and names are written in tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generative_adapter.evaluation.metrics import Estimate
from generative_adapter.evaluation.result_rows import DrawSpread, Row

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
METRIC_LABELS = {"f1": "F1", "exact_match": "exact match"}
_FAMILY_LABELS = {"document-qa": "Document QA", "metaicl": "MetaICL", "personalisation": "Personalisation"}
_CONTROLS = ("own", "other-document", "shuffled", "unrelated")
_SPLIT_LABELS = {"shots": "{} shots", "context_tokens": "{} tokens", "depth": "depth {}", "control": "{}"}


def metric_label(name: str) -> str:
    """A metric's name as people write it."""
    return METRIC_LABELS.get(name, name.replace("_", " "))


def percent(value: float) -> str:
    """A share in percent, with one decimal."""
    return f"{100 * value:.1f}"


def percent_estimate(estimate: Estimate | None) -> str:
    """`45.4 [43.1, 47.8]` in percent; without an interval where there is none."""
    if estimate is None:
        return NOTHING
    return _with_interval(estimate, percent)


def percent_difference(estimate: Estimate | None) -> str:
    """`+3.1 [−0.2, +6.4]` in percentage points."""
    if estimate is None:
        return NOTHING
    return _with_interval(estimate, lambda value: f"{100 * value:+.1f}".replace("-", MINUS))


def percent_spread(mean: float, draws: DrawSpread | None) -> str:
    """`44.9 ± 1.2` in percent: mean, and standard deviation over draws."""
    if draws is None or draws.standard_deviation is None:
        return percent(mean)
    return f"{percent(mean)} ± {percent(draws.standard_deviation)}"


def significant(value: float | None, scale: float = 1.0) -> str:
    """`value / scale` with three significant digits."""
    if value is None:
        return NOTHING
    scaled = value / scale
    if abs(scaled) >= 1000:
        return f"{scaled:,.0f}"
    return f"{scaled:.3g}"


def tokens_label(tokens: Any) -> str:
    """`512`, `1K`, `32K`: thousands are 1024."""
    if isinstance(tokens, int) and tokens >= 1024 and tokens % 1024 == 0:
        return f"{tokens // 1024}K"
    return str(tokens)


def split_label(split: Mapping[str, Any]) -> str:
    """`1K tokens`, `4 shots`, `1K tokens, depth 0.5`; empty without a split."""
    told = {**split, **({"context_tokens": tokens_label(split["context_tokens"])} if "context_tokens" in split else {})}
    return ", ".join(
        "1 shot" if (name, value) == ("shots", 1) else _SPLIT_LABELS[name].format(value) for name, value in told.items()
    )


def family(row: Row) -> str:
    """The first part of a task's name, as a heading."""
    name = row.task.split("/", 1)[0]
    return _FAMILY_LABELS.get(name, name.replace("-", " ").capitalize())


def data_set(row: Row) -> str:
    """A task's name without its family, and without control and the context's tokens at its end."""
    parts = row.task.split("/")
    if len(parts) > 1 and "control" in row.split and parts[-1] in _CONTROLS:
        del parts[-1]
    if len(parts) > 1 and parts[-1] == str(row.split.get("context_tokens")):
        del parts[-1]
    return "/".join(parts[1:]) or parts[0]


def heading(row: Row) -> str:
    """Family and data set, such as `Document QA, dev-v1`."""
    name = data_set(row)
    return family(row) if name == row.task.split("/", 1)[0] else f"{family(row)}, {name}"


def is_averaged(row: Row) -> bool:
    """Whether the row's task is one of several that averages are over."""
    return row.classification is not None and "shots" in row.split


def _with_interval(estimate: Estimate, write: Any) -> str:
    if estimate.low is None or estimate.high is None:
        return write(estimate.mean)
    return f"{write(estimate.mean)} [{write(estimate.low)}, {write(estimate.high)}]"
