"""`metrics.jsonl`: what a training run tells of itself, one JSON object a line.

A line of kind `training` stands for the steps since the last one:

    step, num_steps          steps done and to do in all
    loss                     mean of the steps' weighted losses; null when none was finite
    answer_loss, reconstruction_loss, completion_loss   mean of each objective, where there was any
    distillation_loss        mean divergence from the in-context teacher, where there is one
    gradient_norm            before clipping, mean
    learning_rate            mean
    step_seconds, data_seconds, forward_seconds, backward_seconds, exchange_seconds, optimizer_seconds   mean of a step
    tokens_per_second        real tokens a second
    real_token_share         part of the computed tokens that weren't padding
    num_tokens, num_skipped  real tokens and skipped steps of the whole run
    seconds, seconds_left    training time of the whole run, and an estimate of the rest

A line of kind `evaluation` holds `step` and for each source `<index>-<kind>`: `answer_perplexity`,
`reconstruction_perplexity`, `completion_perplexity`, `answer_accuracy`, `num_answers`, where there was any.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generative_adapter.generator.storage import write_atomically


def finite_values(row: Mapping[str, float]) -> dict[str, float]:
    """The values of a step that means are made of: a skipped step's loss is in no mean."""
    return {name: value for name, value in row.items() if math.isfinite(value)}


def mean_values(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over steps, of each value over the steps that have it; throughput and padding of all steps together."""
    columns: dict[str, list[float]] = {"loss": []}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    real, computed = sum(columns.pop("real_tokens", [])), sum(columns.pop("computed_tokens", []))
    means = {name: sum(values) / len(values) if values else math.nan for name, values in sorted(columns.items())}
    return {
        **means,
        "tokens_per_second": real / max(1e-9, sum(columns.get("step_seconds", []))),
        "real_token_share": real / max(1, computed),
    }


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line; numbers that JSON can't express (a loss that isn't finite) become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_strict(line), allow_nan=False) + "\n")


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step`, which a resumed run does again, and a last line cut off by a kill."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return value
