"""Runs a recipe from start to end: what `genadapter train` calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel, choose_dtype, load_base_model
from generative_adapter.checkpoint import (
    GeneratorCheckpoint,
    load_weights,
    read_generator_info,
    save_generator,
)
from generative_adapter.config_mapping import to_mapping
from generative_adapter.errors import CheckpointError, FingerprintMismatchError, TrainingError
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.generator import paper_generator
from generative_adapter.generator.storage import write_json
from generative_adapter.training.encoder.loop import EncoderTrainer
from generative_adapter.training.encoder.preparing import prepared_states, taught_answers
from generative_adapter.training.encoder.starting import measure_start
from generative_adapter.training.encoder.taking_over import take_over
from generative_adapter.training.loop import Trainer
from generative_adapter.training.memory_blocks import keep_memory_blocks
from generative_adapter.training.metrics import drop_lines_after
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe, load_recipe
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.state import list_checkpoints, load_checkpoint, read_progress
from generative_adapter.training.stepping import METRICS_FILE, Progress
from generative_adapter.training.token_cache import PrepareProgress, prepare, wait_for_stores

logger = logging.getLogger(__name__)

INITIAL_FILE = "initial-generator.safetensors"
_RECORDS_A_LINE = 250


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        status: `finished` or `out_of_time`.
        step: steps done in all.
        seconds: training time in all, resumed parts included.
        num_tokens: real tokens seen.
        real_token_share: part of the computed tokens that weren't padding.
        num_skipped: steps skipped for a non-finite loss or gradient.
        generator: path of the generator as it stands.
        evaluation: the last held-out evaluation.
    """

    status: str
    step: int
    seconds: float
    num_tokens: int
    real_token_share: float
    num_skipped: int
    generator: str
    evaluation: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def run_training(
    config_path: Path,
    overrides: Sequence[str] = (),
    max_seconds: float | None = None,
    resume: bool = False,
    output: Path | None = None,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainingResult:
    """Trains as a recipe says and writes `<output>/generator.safetensors`.

    A run that goes on from a generator with an encoder first writes `<output>/initial-generator.safetensors`: that
    generator with all that is new in this one as it starts, so that its mean with the run's own can be made.

    Args:
        config_path: a YAML recipe.
        overrides: `a.b=value` settings laid over it.
        max_seconds: stop after this time, with a checkpoint to resume from.
        resume: go on from the newest checkpoint in the output folder.
        output: folder of the run, over the recipe's.
        progress: is given every line of metrics.

    Raises:
        ConfigError: when the recipe is wrong.
        TrainingError: when the output folder holds a run and `resume` isn't set, or training can't go on.
        CheckpointError: when there is nothing to resume from, or it is damaged or of another base model.
    """
    recipe = load_recipe(config_path, overrides)
    if output is not None:
        recipe = with_changes(recipe, output=str(output))
    folder = Path(recipe.output)
    checkpoints = list_checkpoints(folder)
    if checkpoints and not resume:
        raise TrainingError(f"{folder} holds a run already ({checkpoints[-1].name}); pass --resume or another --output")
    if resume and not checkpoints:
        raise CheckpointError(f"nothing to resume from: no complete checkpoint in {folder}")
    processes = Processes(recipe.device, recipe.shard_base)
    device = str(processes.device) if processes.size > 1 else recipe.device
    if processes.shards:  # a base model that is to be sharded needn't fit on one device; its type is that device's
        dtype = choose_dtype(recipe.dtype, processes.device)
        base = load_base_model(recipe.base_model, device="cpu", dtype=str(dtype).removeprefix("torch."))
    else:
        base = load_base_model(recipe.base_model, device=device, dtype=recipe.dtype)
    if base.device.type == "cpu":
        keep_memory_blocks()
    trainer = make_trainer(recipe, base, progress, processes, resumed=bool(checkpoints))
    if checkpoints:
        extra = trainer.resume_at(read_progress(checkpoints[-1])["step"])
        saved = load_checkpoint(checkpoints[-1], trainer.generator, trainer.optimizer, extra)
        written = read_generator_info(checkpoints[-1] / "generator.safetensors")
        if written["base_fingerprint"] != base.fingerprint:
            raise FingerprintMismatchError(
                f"{checkpoints[-1]} belongs to another base model, {written['base_name']}, not to {base.name}; resume "
                "with that one"
            )
        try:
            trainer.progress = Progress(**{"flops": None, **saved})  # earlier releases didn't record them
        except TypeError as error:
            raise CheckpointError(f"{checkpoints[-1]}: its progress can't be read by this release: {error}") from error
        logger.info("resumed from %s", checkpoints[-1])
    if trainer.processes.is_first:
        drop_lines_after(folder / METRICS_FILE, trainer.progress.step)
        write_json(folder / "recipe.json", to_mapping(recipe))
        if recipe.initial_generator is not None and recipe.generator.encoder is not None and not checkpoints:
            save_generator(folder / INITIAL_FILE, describe(recipe, base, trainer, trainer.progress))
    status = trainer.run(max_seconds)
    done = trainer.progress
    path = folder / "generator.safetensors"
    if trainer.processes.is_first:
        save_generator(path, describe(recipe, base, trainer, done))
    trainer.processes.leave()
    return TrainingResult(
        status,
        done.step,
        done.seconds,
        done.num_tokens,
        done.num_tokens / max(1, done.num_computed_tokens),
        done.num_skipped,
        str(path),
        done.evaluations[-1] if done.evaluations else {},
    )


def make_trainer(
    recipe: TrainingRecipe,
    base: BaseModel,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    processes: Processes | None = None,
    *,
    resumed: bool = False,
) -> Trainer | EncoderTrainer:
    """A trainer at step 0, with the recipe's initial weights.

    Args:
        recipe: of the run.
        base: the frozen base model.
        progress: is told what is prepared, and every line of the run's metrics.
        processes: those that train; None: what the environment says.
        resumed: weights of a checkpoint follow, so with an encoder the initial generator isn't taken over again.

    Raises:
        CheckpointError: when the recipe's `initial_generator` doesn't fit.
        FingerprintMismatchError: when it has an encoder and is for another base model.
    """
    processes = processes or Processes(recipe.device, recipe.shard_base)
    if recipe.generator.encoder is not None:
        return _make_encoder_trainer(recipe, base, progress, processes, resumed)
    if processes.shards:
        processes.shard(base.model)
    torch.manual_seed(recipe.seed)
    generator = paper_generator(build_generator(recipe.generator, base), "training")
    for target in generator.targets:
        generator[target.name].backward_dtype = getattr(torch, recipe.normalization_backward)
    first_flops = 0.0
    if recipe.initial_generator is not None:
        first_flops = read_generator_info(recipe.initial_generator)["training"].get("flops") or 0.0
        load_weights(
            generator, load_file(recipe.initial_generator), recipe.initial_generator, may_lack=".window_projs."
        )
    if processes.is_first:
        prepare(recipe, base.tokenizer, _told_as_lines(progress))
    else:
        wait_for_stores(recipe, base.tokenizer)
    sampler = ContextSampler(recipe, base.tokenizer)
    recipe = sampler.recipe = with_changes(recipe, num_steps=sampler.num_steps())
    trainer = Trainer(
        recipe, base, generator, sampler, lambda done: describe(recipe, base, trainer, done), progress, processes
    )
    trainer.progress.flops = first_flops
    return trainer


def _make_encoder_trainer(
    recipe: TrainingRecipe,
    base: BaseModel,
    progress: Callable[[Mapping[str, Any]], None] | None,
    processes: Processes,
    resumed: bool,
) -> EncoderTrainer:
    torch.manual_seed(recipe.seed)
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator)

    def tell(what: str, done: int, total: int) -> None:
        if progress is not None and processes.is_first:
            progress({"kind": "preparing", "source": what, "num_records": done, "num_tokens": total})

    states = prepared_states(recipe, base, generator, processes, tell)
    measure_start(generator, base, states)
    if recipe.initial_generator is not None and not resumed:
        embeddings = base.model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        take_over(
            generator, recipe.initial_generator, base, states, embeddings.weight.detach().cpu(), recipe.row_tokens
        )
    taught = taught_answers(recipe, base, states, processes, tell)
    trainer = EncoderTrainer(
        recipe, base, generator, states, lambda done: describe(recipe, base, trainer, done), progress, processes, taught
    )
    trainer.progress.flops = None  # not counted for this form
    return trainer


def _told_as_lines(progress: Callable[[Mapping[str, Any]], None] | None) -> PrepareProgress | None:
    """Progress of preparing as lines of kind `preparing`, a few for every thousand records."""
    if progress is None:
        return None

    def tell(source: str, num_records: int, num_tokens: int) -> None:
        if num_records % _RECORDS_A_LINE == 0:
            progress({"kind": "preparing", "source": source, "num_records": num_records, "num_tokens": num_tokens})

    return tell


def describe(
    recipe: TrainingRecipe, base: BaseModel, trainer: Trainer | EncoderTrainer, done: Progress
) -> GeneratorCheckpoint:
    """The generator as it stands, with what it was trained on."""
    training = {
        "recipe": to_mapping(recipe),
        "step": done.step,
        "seconds": done.seconds,
        "num_tokens": done.num_tokens,
        "flops": done.flops,
        "evaluations": done.evaluations[-5:],
        "torch": torch.__version__,
    }
    return GeneratorCheckpoint(
        trainer.generator, recipe.generator, recipe.prompt, base.name, base.fingerprint, training
    )
