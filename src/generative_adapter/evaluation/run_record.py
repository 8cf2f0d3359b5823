"""`run.json`: what was run, on what, with which settings; written when a run begins and again when it has ended.

Runs in one folder add up: a later run of a task with a method takes the place of the earlier one, and all others stay.
Leaves out: results (`results`).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import DataError
from generative_adapter.evaluation.results import SAMPLES_FILE, SCHEMA_VERSION, read_results
from generative_adapter.evaluation.runner import Outcome
from generative_adapter.generator.storage import write_json

RUN_FILE = "run.json"
_PACKAGES = ("generative-adapter", "torch", "transformers", "peft", "numpy")


def describe_run(
    command: Sequence[str], base: BaseModel, methods: Sequence[str], settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What stands in `run.json` before the first sample.

    Args:
        command: the words of the command line.
        base: the base model.
        methods: their names, in order.
        settings: of the task, by option.
        seed: of every draw.
    """
    cuda = torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else None
    return {
        "schema_version": SCHEMA_VERSION,
        "command": " ".join(_quoted(word) for word in command),
        "base_model": {"name": base.name, "fingerprint": base.fingerprint, "dtype": str(base.dtype)[6:]},
        "methods": list(methods),
        "settings": dict(settings),
        "seed": seed,
        "machine": {
            "device": cuda or platform.processor() or platform.machine(),
            "num_threads": torch.get_num_threads(),
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
        },
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "started": _now(),
    }


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes `run.json`; a crash leaves the old file or none."""
    write_json(Path(folder) / RUN_FILE, run)


def read_run(folder: Path) -> dict[str, Any]:
    """The `run.json` of a folder; empty where there is none.

    Raises:
        DataError: it is no JSON object.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete it, the results beside it stay") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: not an object but a {type(values).__name__}; delete it")
    return values


def begun_run(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """`run.json` before the first sample; what earlier runs in the folder gave stays."""
    before = read_run(folder)
    return {**run, **{name: before[name] for name in ("commands", "choices", "skipped", "keys") if name in before}}


def ended_run(folder: Path, run: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """`run.json` after the last sample: with choices, what was left out, and the keys of all results that count."""
    before = read_run(folder)
    here = {(result.task, result.method) for result in outcome.results}
    kept = set(before.get("keys", ()))
    earlier = [
        result
        for result in read_results(Path(folder) / SAMPLES_FILE)
        if result.key in kept and (result.task, result.method) not in here
    ]
    tasks = {result.task for result in earlier}
    choices = {task: dict(own) for task, own in before.get("choices", {}).items() if task in tasks}
    for task, own in outcome.choices.items():
        choices.setdefault(task, {}).update({name: asdict(choice) for name, choice in own.items()})
    skipped = {task: own for task, own in before.get("skipped", {}).items() if task in tasks}
    commands = [*before.get("commands", ()), run["command"]]
    return {
        **run,
        "commands": list(dict.fromkeys(commands)),
        "ended": _now(),
        "choices": choices,
        "skipped": {**skipped, **{task: dict(own) for task, own in outcome.skipped.items()}},
        "keys": [result.key for result in earlier] + [result.key for result in outcome.results],
    }


def _quoted(word: str) -> str:
    return f"'{word}'" if any(character.isspace() for character in word) else word


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
