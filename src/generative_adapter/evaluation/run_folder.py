"""The folder of an evaluation, read: its settings and the lines of tests that belong to it. No torch.

Leaves out: writing lines (`results`), and means over them (`summary`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generative_adapter.errors import DataError
from generative_adapter.evaluation.results import SAMPLES_FILE, TEST, SampleResult, read_results

RUN_FILE = "run.json"
FORGETTING_FILE = "forgetting.json"
SPLITS = ("shots", "context_tokens", "depth", "control")


@dataclass(frozen=True)
class RunFolder:
    """One evaluation's folder, read.

    Attributes:
        name: of the folder.
        settings: `run.json` without its `keys`; empty where there is none.
        results: the lines of tests that belong to this run.
        num_missing: samples that `run.json` names and that have no line yet.
        forgetting: `forgetting.json`; empty where there is none.
    """

    name: str
    settings: Mapping[str, Any]
    results: tuple[SampleResult, ...]
    num_missing: int = 0
    forgetting: Mapping[str, Any] = field(default_factory=dict)


def read_folder(folder: Path) -> RunFolder:
    """The settings and test lines of a run's folder.

    Where `run.json` has a list `keys`, only lines with one of them belong to the run; else, of lines about the same
    sample and method, the last.

    Raises:
        DataError: there is no `samples.jsonl` in it, a line is broken, or `run.json` or `forgetting.json` is no
            JSON object.
    """
    folder = Path(folder)
    path = folder / SAMPLES_FILE
    if not path.is_file():
        raise DataError(f"{folder}: there is no {SAMPLES_FILE} in it; expected the folder of a `genadapter eval` run")
    settings = _settings(folder / RUN_FILE)
    keys = settings.pop("keys", None)
    own = {result.key: result for result in read_results(path) if result.role == TEST}
    if isinstance(keys, list):
        named = set(keys)
        own = {key: result for key, result in own.items() if key in named}
        num_missing = len(named - own.keys())
    else:
        num_missing = 0
    latest = {_identity(result): result for result in own.values()}
    return RunFolder(
        folder.resolve().name, settings, tuple(latest.values()), num_missing, _settings(folder / FORGETTING_FILE)
    )


def merged_results(runs: Sequence[RunFolder]) -> list[SampleResult]:
    """The lines of all folders, each once.

    Raises:
        DataError: two folders have other results for the same sample and method, or there are none at all.
    """
    merged: dict[tuple[str, ...], tuple[str, SampleResult]] = {}
    for run in runs:
        for result in run.results:
            folder, before = merged.setdefault(_identity(result), (run.name, result))
            if before.key != result.key:
                raise DataError(
                    f"{folder} and {run.name} both have sample {result.sample!r} by {result.method}, from different "
                    "settings; give folders that differ in tasks or methods"
                )
    if not merged:
        names = ", ".join(run.name for run in runs) or "no folder"
        raise DataError(f"{names}: no sample was answered yet; run `genadapter eval` first")
    return [result for _, result in merged.values()]


def split_of(result: SampleResult) -> dict[str, Any]:
    """Those of `SPLITS` that the sample's metadata has."""
    return {name: result.metadata[name] for name in SPLITS if name in result.metadata}


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); run the evaluation again, or delete the file") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path}: a {type(settings).__name__}; expected a JSON object")
    return settings


def _identity(result: SampleResult) -> tuple[str, ...]:
    return (result.task, result.method, json.dumps(split_of(result)), result.sample)
