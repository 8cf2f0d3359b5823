"""`genadapter eval document-qa`: questions about groups of documents, by every method."""

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


def document_qa(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Documents with questions: SQuAD's format and others.")
    ],
    output: options.OutputOption,
    documents: Annotated[
        Path | None, typer.Option("--documents", metavar="FILE", help="StreamingQA: the texts of its questions.")
    ] = None,
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="K,...", help="Tokens that groups of documents average.")
    ] = "512,1024,2048,4096",
    methods: options.MethodsOption = options.DEFAULT_METHODS,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions at each length, spread evenly (default: all).")
    ] = None,
    max_contexts: Annotated[
        int | None, typer.Option("--max-contexts", min=1, help="Groups at each length at most (default: all).")
    ] = None,
    train_data: options.TrainDataOption = None,
    choice_limit: options.ChoiceLimitOption = 64,
    choice_contexts: options.ChoiceContextsOption = 8,
    num_shots: options.NumShotsOption = 3,
    max_pairs: options.MaxPairsOption = None,
    fine_tuning_wording: options.PlainWordingOption = None,
    learning_rate: options.LearningRateOption = None,
    epochs: options.EpochsOption = None,
    fit_batch: options.FitBatchOption = None,
    lora_rank: options.LoraRankOption = 16,
    max_prompt_tokens: options.MaxPromptOption = None,
    task_wording: options.TaskWordingOption = False,
    memory_dtype: options.StoredMemoryOption = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Group documents at random, not neighbours.")] = False,
    batch_rows: options.BatchRowsOption = 64,
    batch_tokens: options.BatchTokensOption = 16384,
    seed: options.SeedOption = 0,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Asks every question of a group of documents against the whole group, at several lengths.

    Documents are grouped evenly, in the file's order, to an average of k tokens (section 4.1 of the paper). Judged by
    SQuAD's F1, exact match and recall.
    """
    lengths = options.numbers(context_tokens, "--context-tokens", int, 1)
    names = options.names(methods, "--methods")

    def prepare(base: BaseModel) -> tuple[list[TaskPlan], MethodSettings]:
        from generative_adapter.base_model.prompts import plain_ids
        from generative_adapter.evaluation.runner import TaskPlan
        from generative_adapter.evaluation.tasks.document_qa import WORDINGS, DocumentQa, read_documents
        from generative_adapter.evaluation.training_data import document_training_data

        def count_tokens(text: str) -> int:
            return len(plain_ids(base.tokenizer, text))

        tested = read_documents(data, documents)
        training = document_training_data(
            train_data or (), count_tokens, num_shots=num_shots, max_pairs=max_pairs, seed=seed
        )
        plans = []
        for length in lengths:
            task = DocumentQa(tested, count_tokens, length, limit, max_contexts, shuffle, seed, training.shots)
            choice = None
            if training.documents is not None:
                choice = DocumentQa(
                    training.documents, count_tokens, length, choice_limit, choice_contexts, False, seed, training.shots
                )
            plans.append(TaskPlan(task, choice, fine_tuning_wording))
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
            memory_dtype=memory_dtype,
        )
        return plans, settings

    run_evaluation(
        ModelOptions(generator, base_model, device, dtype),
        names,
        output,
        {
            "task": "document-qa",
            "data": str(data),
            "documents": None if documents is None else str(documents),
            "context_tokens": list(lengths),
            "limit": limit,
            "max_contexts": max_contexts,
            "train_data": [str(path) for path in train_data or ()],
            "choice_limit": choice_limit,
            "choice_contexts": choice_contexts,
            "num_shots": num_shots,
            "max_pairs": max_pairs,
            "shuffle": shuffle,
            "task_wording": task_wording,
            "memory_dtype": memory_dtype,
            "max_prompt_tokens": max_prompt_tokens,
        },
        seed,
        prepare,
        as_json=as_json,
    )
