"""`genadapter eval personalisation`: questions about conversations, by every method."""

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


def personalisation(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Conversations: Multi-Session Chat's or LoCoMo's format.")
    ],
    output: options.OutputOption,
    methods: options.MethodsOption = options.DEFAULT_METHODS,
    limit: options.LimitOption = None,
    max_contexts: options.MaxContextsOption = None,
    train_data: options.TrainDataOption = None,
    choice_limit: options.ChoiceLimitOption = 64,
    choice_contexts: options.ChoiceContextsOption = 16,
    num_shots: options.NumShotsOption = 3,
    max_pairs: options.MaxPairsOption = None,
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
    """Asks what was told in conversations of several sessions (section 4.3 of the paper).

    Told are F1, operations of a query and numbers stored. Multi-Session Chat has no questions; they are made from its
    annotated persona facts by stated rules, the same for every method.
    """
    names = options.names(methods, "--methods")

    def prepare(base: BaseModel) -> tuple[list[TaskPlan], MethodSettings]:
        from generative_adapter.evaluation.runner import TaskPlan
        from generative_adapter.evaluation.tasks.personalisation import WORDINGS, Personalisation, read_conversations
        from generative_adapter.evaluation.training_data import conversation_training_data

        tested = read_conversations(data)
        training = conversation_training_data(train_data or (), num_shots=num_shots, max_pairs=max_pairs, seed=seed)
        choice = None
        if training.conversations is not None:
            choice = Personalisation(training.conversations, choice_limit, choice_contexts, seed, training.shots)
        task = Personalisation(tested, limit, max_contexts, seed, training.shots)
        settings = method_settings(
            WORDINGS[0],
            training,
            generator=generator,
            task_wording=task_wording,
            max_prompt_tokens=max_prompt_tokens,
            batch=(batch_rows, batch_tokens),
            fitting=(learning_rate, epochs, fit_batch),
            lora_rank=lora_rank,
            seed=seed,
        )
        return [TaskPlan(task, choice, fine_tuning_wording)], settings

    run_evaluation(
        ModelOptions(generator, base_model, device, dtype),
        names,
        output,
        {
            "task": "personalisation",
            "data": str(data),
            "limit": limit,
            "max_contexts": max_contexts,
            "train_data": [str(path) for path in train_data or ()],
            "choice_limit": choice_limit,
            "choice_contexts": choice_contexts,
            "num_shots": num_shots,
            "max_pairs": max_pairs,
            "task_wording": task_wording,
            "max_prompt_tokens": max_prompt_tokens,
        },
        seed,
        prepare,
        as_json=as_json,
    )
