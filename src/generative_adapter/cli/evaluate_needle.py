"""`genadapter eval needle`: a made-up fact hidden in long texts, asked for by every method."""

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

NUM_CHOICE_DRAWS = 8


def needle(
    output: options.OutputOption,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Documents to hide facts in (default: made-up facts of others)."),
    ] = None,
    lengths: Annotated[
        str, typer.Option("--lengths", metavar="N,...", help="Tokens of the texts, facts included.")
    ] = "512,1024,2048,4096",
    depths: Annotated[
        str, typer.Option("--depths", metavar="D,...", help="Where a fact stands: 0 at the beginning, 1 at the end.")
    ] = "0,0.25,0.5,0.75,1",
    num_needles: Annotated[
        str, typer.Option("--needles", metavar="N,...", help="Facts hidden in a text, each asked for.")
    ] = "1",
    draws: Annotated[
        str, typer.Option("--draws", metavar="SEED,...", help="Draws of facts and text around them, by seed.")
    ] = "0,1,2,3,4",
    methods: options.MethodsOption = options.DEFAULT_METHODS,
    choose_wording: Annotated[
        bool,
        typer.Option("--choose-wording/--first-wording", help="Whether prompting chooses its wording, on other draws."),
    ] = True,
    train_data: options.TrainDataOption = None,
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
    """Hides a made-up fact in a text of each length, at each depth, and asks for it.

    For one draw and length the fact and the text around it are the same at every depth. Without --text it stands among
    facts like it about others, which is harder than prose. Judged by SQuAD's F1, exact match and recall.
    """
    asked_lengths = options.numbers(lengths, "--lengths", int, 1)
    asked_depths = options.numbers(depths, "--depths", float, 0)
    numbers = options.numbers(num_needles, "--needles", int, 1)
    seeds = options.numbers(draws, "--draws", int, 0)
    names = options.names(methods, "--methods")

    def prepare(base: BaseModel) -> tuple[list[TaskPlan], MethodSettings]:
        from generative_adapter.base_model.prompts import plain_ids
        from generative_adapter.evaluation.runner import TaskPlan
        from generative_adapter.evaluation.tasks.document_qa import WORDINGS
        from generative_adapter.evaluation.tasks.needle import Filler, Needle, read_filler
        from generative_adapter.evaluation.training_data import document_training_data

        def count_tokens(text: str) -> int:
            return len(plain_ids(base.tokenizer, text))

        filler = Filler() if text is None else read_filler(text)
        training = document_training_data(
            train_data or (), count_tokens, num_shots=num_shots, max_pairs=max_pairs, seed=seed
        )
        task = Needle(count_tokens, asked_lengths, asked_depths, numbers, seeds, filler, training.shots)
        choice = None
        if choose_wording:
            others = tuple(range(max(seeds) + 1, max(seeds) + 1 + NUM_CHOICE_DRAWS))
            choice = Needle(count_tokens, (min(asked_lengths),), (0.5,), (1,), others, filler, training.shots)
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
            "task": "needle",
            "text": None if text is None else str(text),
            "lengths": list(asked_lengths),
            "depths": list(asked_depths),
            "num_needles": list(numbers),
            "draws": list(seeds),
            "choose_wording": choose_wording,
            "train_data": [str(path) for path in train_data or ()],
            "num_shots": num_shots,
            "max_pairs": max_pairs,
            "task_wording": task_wording,
            "max_prompt_tokens": max_prompt_tokens,
        },
        seed,
        prepare,
        as_json=as_json,
    )
