"""`genadapter eval metaicl`: test rows after demonstrations, by every method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generative_adapter.cli import evaluation_options as options
from generative_adapter.cli.evaluation_run import ModelOptions, method_settings, run_evaluation
from generative_adapter.cli.options import BaseModelOption, DeviceOption, DtypeOption, GeneratorOption, JsonOption

if TYPE_CHECKING:
    from generative_adapter.base_model.loading import BaseModel
    from generative_adapter.evaluation.runner import TaskPlan
    from generative_adapter.methods.settings import MethodSettings


def metaicl(
    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER", help="Folder of tasks, each a folder as MetaICL writes it.")
    ],
    output: options.OutputOption,
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="A,B,...", help="Tasks (default: all in the folder).")
    ] = None,
    shots: Annotated[str, typer.Option("--shots", metavar="K,...", help="Numbers of demonstrations.")] = "1,2,4,8,16",
    draws: Annotated[
        str, typer.Option("--draws", metavar="SEED,...", help="Draws of demonstrations, by the seeds in file names.")
    ] = "13,21,42,87,100",
    methods: options.MethodsOption = options.DEFAULT_METHODS,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Test rows of each task (default: all).")] = None,
    choose_wording: Annotated[
        bool,
        typer.Option(
            "--choose-wording/--first-wording",
            help="Whether prompting chooses its wording for each task, on demonstrations of other draws.",
        ),
    ] = True,
    free: Annotated[
        bool, typer.Option("--free", help="Answer freely what is no classification (exact match and F1).")
    ] = False,
    fine_tuning_wording: options.PlainWordingOption = None,
    learning_rate: options.LearningRateOption = None,
    epochs: options.EpochsOption = None,
    fit_batch: options.FitBatchOption = None,
    lora_rank: options.LoraRankOption = 16,
    max_prompt_tokens: options.MaxPromptOption = None,
    task_wording: options.TaskWordingOption = False,
    batch_rows: options.BatchRowsOption = 64,
    batch_tokens: options.BatchTokensOption = 16384,
    seed: options.SeedOption = 0,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answers the test rows of MetaICL's tasks after K demonstrations (section 4.2 of the paper).

    The likeliest option is the answer; accuracy is a mean over draws, whose spread is told, and over tasks.
    """
    numbers = options.numbers(shots, "--shots", int, 1)
    seeds = options.numbers(draws, "--draws", int, 0)
    names = options.names(methods, "--methods")

    from generative_adapter.evaluation.tasks.metaicl import WORDINGS, MetaIcl, task_names

    chosen = task_names(data) if tasks is None else options.names(tasks, "--tasks")

    def prepare(base: BaseModel) -> tuple[list[TaskPlan], MethodSettings]:
        from generative_adapter.evaluation.runner import TaskPlan
        from generative_adapter.evaluation.training_data import TrainingData

        plans = []
        for name in chosen:
            task = MetaIcl(data, name, numbers, seeds, limit, free, seed)
            plans.append(TaskPlan(task, task.choice() if choose_wording else None, fine_tuning_wording))
        settings = method_settings(
            WORDINGS[0],
            TrainingData(),
            generator=generator,
            task_wording=task_wording,
            max_prompt_tokens=max_prompt_tokens,
            batch=(batch_rows, batch_tokens),
            fitting=(learning_rate, epochs, fit_batch),
            lora_rank=lora_rank,
            seed=seed,
        )
        return plans, settings

    run_evaluation(
        ModelOptions(generator, base_model, device, dtype),
        names,
        output,
        {
            "task": "metaicl",
            "data": str(data),
            "tasks": list(chosen),
            "shots": list(numbers),
            "draws": list(seeds),
            "limit": limit,
            "choose_wording": choose_wording,
            "free": free,
            "task_wording": task_wording,
            "max_prompt_tokens": max_prompt_tokens,
        },
        seed,
        prepare,
        as_json=as_json,
    )
