"""`genadapter eval forgetting`: what a context does to answers and text that have nothing to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from generative_adapter.cli import evaluation_options as options
from generative_adapter.cli.console import output_console, run_progress
from generative_adapter.cli.evaluation_run import ModelOptions, method_settings, run_evaluation
from generative_adapter.cli.options import BaseModelOption, DeviceOption, DtypeOption, GeneratorOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from generative_adapter.base_model.loading import BaseModel
    from generative_adapter.evaluation.general_ability import GeneralAbility
    from generative_adapter.evaluation.interference import Interference
    from generative_adapter.evaluation.runner import Outcome, Runner, TaskPlan
    from generative_adapter.methods.protocol import Context
    from generative_adapter.methods.settings import MethodSettings


def forgetting(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Documents with questions: SQuAD's format and others.")
    ],
    output: options.OutputOption,
    documents: Annotated[
        Path | None, typer.Option("--documents", metavar="FILE", help="StreamingQA: the texts of its questions.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Held-out text to predict (default: none is predicted)."),
    ] = None,
    num_segments: Annotated[int, typer.Option("--segments", min=1, help="Segments of that text.")] = 20,
    segment_tokens: Annotated[int, typer.Option("--segment-tokens", min=2, help="Tokens of a segment.")] = 512,
    text_contexts: Annotated[
        int, typer.Option("--text-contexts", min=1, help="Contexts at each length under which the text is predicted.")
    ] = 16,
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="K,...", help="Tokens that groups of documents average.")
    ] = "512",
    controls: Annotated[
        str, typer.Option("--controls", metavar="A,B,...", help="Which of own, other-document, shuffled, unrelated.")
    ] = "own,other-document,shuffled,unrelated",
    num_unrelated: Annotated[
        int | None,
        typer.Option("--unrelated", min=1, help="Unrelated questions asked under each context (default: all)."),
    ] = None,
    methods: options.MethodsOption = "generative-adapter",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions at each length, spread evenly (default: all).")
    ] = None,
    max_contexts: Annotated[
        int | None, typer.Option("--max-contexts", min=1, help="Groups at each length at most (default: all).")
    ] = None,
    train_data: options.TrainDataOption = None,
    max_pairs: options.MaxPairsOption = None,
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
    """Asks questions under the wrong document and under shuffled words, and unrelated questions; predicts other text.

    Each method is compared with the model before it, which is run too: `no-adapter`, the base model in the generator's
    wording, for the generative adapter, and `closed-book` for others. All take the first wording. DIR gets
    forgetting.json beside the results.
    """
    from generative_adapter.evaluation.forgetting import (
        general_ability_of,
        interference_of,
        with_before,
        write_forgetting,
    )
    from generative_adapter.evaluation.tasks.document_qa import WORDINGS

    lengths = options.numbers(context_tokens, "--context-tokens", int, 1)
    asked = options.names(controls, "--controls")
    names = options.names(methods, "--methods")
    contexts: dict[int, list[Context]] = {}
    segments: list[list[int]] = []

    def prepare(base: BaseModel) -> tuple[list[TaskPlan], MethodSettings]:
        from generative_adapter.base_model.prompts import plain_ids
        from generative_adapter.evaluation.perplexity import held_out_segments
        from generative_adapter.evaluation.runner import TaskPlan
        from generative_adapter.evaluation.tasks.controls import Control
        from generative_adapter.evaluation.tasks.document_qa import DocumentQa, read_documents
        from generative_adapter.evaluation.training_data import document_training_data

        def count_tokens(text: str) -> int:
            return len(plain_ids(base.tokenizer, text))

        tested = read_documents(data, documents)
        training = document_training_data(train_data or (), count_tokens, num_shots=0, max_pairs=max_pairs, seed=seed)
        plans = []
        for length in lengths:
            task = DocumentQa(tested, count_tokens, length, limit, max_contexts, False, seed)
            contexts[length] = [sample.context for sample in task.samples()][:text_contexts]
            plans += [TaskPlan(Control(task, control, seed, num_unrelated)) for control in asked]
        if text is not None:
            segments.extend(held_out_segments(text, base, num_segments, segment_tokens, seed))
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
        return plans, settings

    def then(runner: Runner, outcome: Outcome) -> None:
        interference = interference_of(outcome.results, names, seed) if "unrelated" in asked else {}
        ability = {}
        if segments:
            with run_progress() as progress:
                ability = general_ability_of(
                    runner.shelf, names, WORDINGS[0], contexts, segments, output, seed=seed, progress=progress
                )
        path = write_forgetting(output, interference, ability)
        if not as_json:
            _show(interference, ability)
            output_console().print(f"Forgetting: {path}")

    run_evaluation(
        ModelOptions(generator, base_model, device, dtype),
        with_before(names),
        output,
        {
            "task": "forgetting",
            "data": str(data),
            "documents": None if documents is None else str(documents),
            "text": None if text is None else str(text),
            "segments": num_segments,
            "segment_tokens": segment_tokens,
            "text_contexts": text_contexts,
            "context_tokens": list(lengths),
            "controls": list(asked),
            "unrelated": num_unrelated,
            "limit": limit,
            "max_contexts": max_contexts,
            "train_data": [str(path) for path in train_data or ()],
            "max_pairs": max_pairs,
            "task_wording": task_wording,
            "max_prompt_tokens": max_prompt_tokens,
        },
        seed,
        prepare,
        then=then,
        as_json=as_json,
    )


def _show(
    interference: Mapping[str, Mapping[int, Interference]], ability: Mapping[str, Mapping[int, GeneralAbility]]
) -> None:
    table = Table(
        "method", "context", "unchanged", "recall before", "after", "right to wrong", "wrong to right", "PPL ratio"
    )
    for name in dict.fromkeys([*interference, *ability]):
        for length in dict.fromkeys([*interference.get(name, {}), *ability.get(name, {})]):
            changes = interference.get(name, {}).get(length)
            text = ability.get(name, {}).get(length)
            shown = ("–",) * 5
            if changes is not None:
                shares = (f"{100 * value:.1f}" for value in (changes.unchanged, changes.before, changes.after))
                shown = (*shares, f"{changes.num_became_wrong:,}", f"{changes.num_became_right:,}")
            table.add_row(name, f"{length:,}", *shown, "–" if text is None else f"{text.ratio.mean:.3f}")
    output_console().print(table)
