"""Result lines made by hand, for tests of what is computed from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from generative_adapter.evaluation.results import SAMPLES_FILE, QueryResult, SampleResult

COSTS = {
    "training_flops": 3e15, "contextualizing_flops": 2e12, "answering_flops": 5e11, "stored_floats": 32_000_000,
    "stored_bytes": 64_000_000,
}  # fmt: skip


def query(identity: str, values: Mapping[str, float], **changes: Any) -> QueryResult:
    fields = {"question": f"question {identity}", "references": ("yes",), "answer": "no", "seconds": 0.5, **changes}
    return QueryResult(id=identity, values=values, **fields)


def sample(
    task: str, method: str, identity: str, values: Iterable[float], metadata: Mapping[str, Any], **changes: Any
) -> SampleResult:
    """A line whose queries have these values of the metric f1 (accuracy for MetaICL)."""
    metric = "accuracy" if task.startswith("metaicl/") else "f1"
    queries = tuple(query(str(number), {metric: value}) for number, value in enumerate(values))
    fields: dict[str, Any] = {
        "key": f"{task}/{method}/{identity}",
        "task": task,
        "role": "test",
        "method": method,
        "wording": "figure 7",
        "sample": f"{task}/{identity}",
        "context_id": f"context of {identity}",
        "metadata": metadata,
        "metrics": (metric,),
        "costs": COSTS,
        "measured": {"contextualizing_seconds": 2.0, "answering_seconds": 1.0, "peak_memory_bytes": 1e9},
        "queries": queries,
        **changes,
    }
    return SampleResult(**fields)


def write_folder(folder: Path, lines: Iterable[SampleResult], run: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line.to_dict()) + "\n" for line in lines)
    (folder / SAMPLES_FILE).write_text(text)
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))
    return folder


def every_kind() -> list[SampleResult]:
    """Lines of document QA, MetaICL, personalisation, a needle and controls, by several methods."""
    strength = {"closed-book": 0.05, "full-context": 0.7, "generative-adapter": 0.4, "sft-lora": 0.2}
    lines = []
    for place, (method, value) in enumerate(strength.items()):
        costs = {**COSTS, "answering_flops": (1 + 5 * (method == "full-context")) * 5e11}
        for tokens in (512, 1024, 2048, 4096):
            for number in range(4):
                values = [max(0.0, value - tokens / 20_000 + 0.05 * ((number + place) % 3)), value]
                metadata = {"context_tokens": tokens, "num_tokens": tokens}
                task = f"document-qa/dev-v1/{tokens}"
                lines.append(sample(task, method, f"{number}", values, metadata, costs=costs))
        for task, classification in (("sick", True), ("glue-rte", True), ("codah", False)):
            for shots in (1, 4, 16):
                for draw in (13, 21):
                    values = [value, min(1.0, value + 0.02 * shots + 0.001 * draw)]
                    metadata = {"task": task, "classification": classification, "shots": shots, "draw": draw}
                    identity = f"{shots:02d}-shot/draw-{draw}"
                    lines.append(sample(f"metaicl/{task}", method, identity, values, metadata, costs=costs))
        for number in range(5):
            values = [value, value / 2 + 0.1 * (number % 2)]
            lines.append(sample("personalisation/msc", method, f"{number}", values, {"num_sessions": 4}, costs=costs))
        for tokens in (512, 1024, 2048):
            for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
                metadata = {"context_tokens": tokens, "depth": depth}
                identity = f"{tokens}-{depth}"
                values = [value * (1 - depth / 2)]
                lines.append(sample("needle/passkey", method, identity, values, metadata, costs=costs))
        for control in ("another document", "unrelated question"):
            lines.append(sample("forgetting/dev-v1", method, control, [value, 0.1], {"control": control}, costs=costs))
    return lines
