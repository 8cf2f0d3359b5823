"""Runs an evaluation for the commands of `genadapter eval`: loads, runs with a progress bar, writes, shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative_adapter.cli import loading
from generative_adapter.cli.console import print_json, print_text, run_progress, waiting
from generative_adapter.errors import ConfigError

if TYPE_CHECKING:
    from generative_adapter.base_model.loading import BaseModel
    from generative_adapter.evaluation.runner import Outcome, Runner, TaskPlan
    from generative_adapter.evaluation.training_data import TrainingData
    from generative_adapter.methods.protocol import Wording
    from generative_adapter.methods.settings import MethodSettings


@dataclass(frozen=True)
class ModelOptions:
    """Which models are run, as the command line says."""

    generator: str | None
    base_model: str | None
    device: str
    dtype: str


def method_settings(
    wording: Wording,
    training: TrainingData,
    *,
    generator: str | None,
    task_wording: bool,
    max_prompt_tokens: int | None,
    batch: tuple[int, int],
    fitting: tuple[list[str] | None, list[str] | None, list[str] | None],
    lora_rank: int,
    seed: int,
    memory_dtype: str | None = None,
) -> MethodSettings:
    """Settings of all methods, from the options that the commands share.

    Args:
        wording: the task's first.
        training: what methods may learn from.
        generator: its file.
        task_wording: whether a generator is asked in the task's wording.
        max_prompt_tokens: of prompting.
        batch: rows and tokens that run together.
        fitting: `--learning-rate`, `--epochs` and `--fit-batch`, as they were given.
        lora_rank: of fine-tuned LoRA.
        seed: of every draw.
        memory_dtype: form in which a generator's memories are stored first.

    Raises:
        ConfigError: an option can't be read.
    """
    from generative_adapter.cli.evaluation_options import by_method
    from generative_adapter.methods.answering import Batching
    from generative_adapter.methods.settings import MethodSettings

    learning_rate, epochs, fit_batch = fitting
    return MethodSettings(
        wording,
        batching=Batching(*batch),
        max_prompt_tokens=max_prompt_tokens,
        generator=generator,
        task_wording=task_wording,
        memory_dtype=memory_dtype,
        training_pairs=training.pairs,
        validation_pairs=training.validation_pairs,
        learning_rates=by_method(learning_rate, "--learning-rate", float),
        max_epochs=by_method(epochs, "--epochs", int),
        batch_sizes=by_method(fit_batch, "--fit-batch", int),
        lora_rank=lora_rank,
        seed=seed,
    )


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
    plans, settings_of_methods = prepare(base)
    log = ResultLog(output)
    run = describe_run(["genadapter", *sys.argv[1:]], base, methods, settings, seed)
    write_run(output, begun_run(output, run))
    with run_progress() as progress:
        at = (0, 0)

        def show(now: str, done: int, total: int) -> None:
            nonlocal at
            at = (done, total)
            progress(now, done, total)

        settings_of_methods = replace(
            settings_of_methods,
            kept_fits=output / "fits",
            progress=lambda epoch, most: progress(f"Fine-tuning, epoch {epoch} of {most}", *at),
        )
        runner = Runner(MethodShelf(base, settings_of_methods, tuple(methods)), log, seed, show)
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
