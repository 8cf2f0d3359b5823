"""Runs an evaluation for the commands of `genadapter eval`: loads, runs with a progress bar, writes, shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative_adapter.cli import loading
from generative_adapter.cli.console import print_json, print_text, run_progress, waiting
from generative_adapter.errors import ConfigError

if TYPE_CHECKING:
    from generative_adapter.base_model.loading import BaseModel
    from generative_adapter.evaluation.runner import Outcome, Runner, TaskPlan
    from generative_adapter.methods.settings import MethodSettings


@dataclass(frozen=True)
class ModelOptions:
    """Which models are run, as the command line says."""

    generator: str | None
    base_model: str | None
    device: str
    dtype: str


def run_evaluation(
    models: ModelOptions,
    methods: Sequence[str],
    output: Path,
    settings: Mapping[str, Any],
    seed: int,
    prepare: Callable[[BaseModel], tuple[Sequence[TaskPlan], MethodSettings]],
    *,
    then: Callable[[Runner, Outcome], None] | None = None,
    as_json: bool = False,
) -> None:
    """Runs methods on what `prepare` gives, and writes results and report.

    Args:
        models: which base model and generator.
        methods: names.
        output: folder of results.
        settings: of the task, for the record.
        seed: of every draw.
        prepare: reads the data, once the base model is there.
        then: what else is to be measured, before the report is written.
        as_json: print results as JSON.

    Raises:
        ConfigError: a method is unknown, or the output is no folder.
        DataError: data can't be used.
    """
    from generative_adapter.evaluation.results import ResultLog
    from generative_adapter.evaluation.run_record import begun_run, describe_run, ended_run, write_run
    from generative_adapter.evaluation.runner import Runner
    from generative_adapter.evaluation.shelf import MethodShelf
    from generative_adapter.methods.registry import check_names

    check_names(methods)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: this is a file; name a folder")
    with waiting("Loading the model ..."):
        base = loading.load_base(models.generator, models.base_model, models.device, models.dtype)
    plans, method_settings = prepare(base)
    log = ResultLog(output)
    run = describe_run(["genadapter", *sys.argv[1:]], base, methods, settings, seed)
    write_run(output, begun_run(output, run))
    with run_progress() as progress:
        runner = Runner(MethodShelf(base, method_settings, tuple(methods)), log, seed, progress)
        outcome = runner.run(methods, plans)
    write_run(output, ended_run(output, run, outcome))
    if then is not None:
        then(runner, outcome)
    _show(output, as_json)


def _show(output: Path, as_json: bool) -> None:
    from generative_adapter.evaluation.report.writing import write_report

    with waiting("Writing the report ..."):
        written = write_report(output)
    if as_json:
        print_json(json.loads(written["results.json"].read_text(encoding="utf-8")))
    else:
        print_text(written["tables.md"].read_text(encoding="utf-8"))
        print_text(f"Report: {written['report.html']}")
