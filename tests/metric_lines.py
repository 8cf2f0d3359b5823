"""What a training run wrote to its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metric_lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training_lines(folder: Path, having: str = "loss") -> list[dict[str, Any]]:
    """The lines about training that have some number."""
    return [line for line in metric_lines(folder) if line["kind"] == "training" and having in line]


def training_losses(folder: Path) -> dict[int, float]:
    """Step and loss of every line about training."""
    return {line["step"]: line["loss"] for line in training_lines(folder)}
