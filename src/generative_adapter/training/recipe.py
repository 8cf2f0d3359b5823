"""A training run's settings, as a YAML file gives them (`configs/`). No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from generative_adapter.config import GeneratorConfig, PromptConfig, require
from generative_adapter.config_mapping import from_mapping
from generative_adapter.errors import ConfigError
from generative_adapter.training.encoder.settings import EncoderTraining
from generative_adapter.training.source_config import SourceConfig


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides a training run.

    Attributes:
        sources: where contexts come from.
        output: folder of checkpoints and metrics.
        base_model: `embedded`, a hub id, a folder or a GGUF file.
        device: `auto` or a torch device.
        dtype: number format of the frozen base model; the generator is always float32.
        optimizer: `adamw`, or `muon` for the projections with AdamW for the norms.
        attention: attention kernel of the rows with gradients: `sdpa`, or `eager`, or `grouped`, its weights in fewer
            operations, the fastest for short rows on a CPU.
        generator: form of the generator.
        prompt: wording of questions.
        initial_generator: a generator file to start from; with an encoder it may be wider and have other targets.
        normalization_backward: number format of the backward of `newton_schulz`, `float32` (exact) or `bfloat16`
            (faster).
        seed: decides initial weights and the order of data.
        num_steps: optimiser steps in all; `num_epochs` decides them instead where it is given.
        num_epochs: every source is drawn so often, in proportion to its number of records; None: `num_steps` counts.
        held_out_texts: what becomes of records from held-out test splits (`data.held_out_texts`): `refuse`, an error
            that names the record, or `skip`, which leaves them out and logs how many.
        cache: folder of the token caches of `text`, `instructions` and `cloze`; None: the user's cache folder.
        contexts_per_step: contexts in a global batch.
        micro_batch_tokens: most tokens in one forward and backward pass, padding not counted; a step takes as many
            passes as it needs, with the same gradient.
        gradient_checkpointing: blocks with gradients keep only their input and are computed again in the backward pass:
            a third more work there for a fraction of the memory.
        shard_base: the frozen base model is spread over all processes (FSDP2) instead of held by each.
        row_tokens: questions are packed into rows of at most this many tokens.
        learning_rate: peak learning rate; Muon's is scaled to AdamW's units (RMS of an early update).
        memory_rate: factor on the learning rate of all but the output projections; below 1 keeps what an
            `initial_generator` knows of writing and looking up while outputs are learned, 0 freezes it.
        whitening_contexts: contexts from which second moments of the projections' inputs are measured before training
            (`whitening`); all projections but the outputs then move in whitened coordinates and in proportion to their
            size: `memory_rate` 1 and `learning_rate` 0.002 move them by 0.2 % a step. 0: none of that.
        warmup_steps: steps of linear warm-up.
        decay_share: last part of the run in which the learning rate falls linearly; 1 is the paper's schedule.
        final_learning_rate: what it falls to, as a part of the peak.
        weight_decay: AdamW's, on the projections.
        adam_betas: AdamW's.
        gradient_clip: largest global gradient norm.
        answer_weight: weight of the answer loss (mean over answer tokens).
        reconstruction_weight: weight of the reconstruction loss (mean over its tokens), eq. (5).
        completion_weight: weight of the completion loss (mean over its tokens), eq. (5).
        lookup_weight: weight of looking answers up at the token of the context where they stand, for contexts of one
            chunk and `ridge`; beyond the paper.
        distillation_weight: weight of the Kullback-Leibler divergence from the base model that sees the context in its
            prompt; beyond the paper. 0: none.
        distillation_top_k: tokens of largest probability that this divergence is taken over.
        checkpoint_seconds: time between checkpoints.
        keep_checkpoints: how many of them stay, the newest; more than one can be averaged (docs/training.md).
        evaluation_steps: steps between held-out evaluations; 0: none but the last.
        evaluation_contexts: held-out contexts of each source in an evaluation.
        log_steps: steps between lines in metrics.jsonl.
        encoder_training: of a generator with an encoder.
    """

    sources: tuple[SourceConfig, ...]
    output: str
    base_model: str = "embedded"
    device: str = "auto"
    dtype: str = "auto"
    optimizer: str = "adamw"
    attention: str = "sdpa"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    initial_generator: str | None = None
    normalization_backward: str = "float32"
    seed: int = 0
    num_steps: int = 1000
    num_epochs: float | None = None
    held_out_texts: str = "refuse"
    cache: str | None = None
    contexts_per_step: int = 8
    micro_batch_tokens: int = 16384
    gradient_checkpointing: bool = False
    shard_base: bool = False
    row_tokens: int = 128
    learning_rate: float = 2e-3
    memory_rate: float = 1.0
    whitening_contexts: int = 0
    warmup_steps: int = 100
    decay_share: float = 1.0
    final_learning_rate: float = 0.0
    weight_decay: float = 0.01
    adam_betas: tuple[float, ...] = (0.9, 0.999)
    gradient_clip: float = 1.0
    answer_weight: float = 1.0
    reconstruction_weight: float = 1.0
    completion_weight: float = 1.0
    lookup_weight: float = 0.0
    distillation_weight: float = 0.0
    distillation_top_k: int = 16
    checkpoint_seconds: float = 180.0
    keep_checkpoints: int = 2
    evaluation_steps: int = 200
    evaluation_contexts: int = 32
    log_steps: int = 10
    encoder_training: EncoderTraining = field(default_factory=EncoderTraining)

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "sources is empty; name at least one")
        require(
            any(source.start_step == 0 for source in self.sources), "no source has start_step 0: nothing to start with"
        )
        require(
            self.normalization_backward in ("float32", "bfloat16"),
            f"normalization_backward must be float32 or bfloat16, got {self.normalization_backward!r}",
        )
        require(self.optimizer in ("adamw", "muon"), f"optimizer must be adamw or muon, got {self.optimizer!r}")
        require(
            self.attention in ("eager", "grouped", "sdpa"),
            f"attention must be eager, grouped or sdpa, got {self.attention!r}",
        )
        require(
            self.held_out_texts in ("refuse", "skip"),
            f"held_out_texts must be refuse or skip, got {self.held_out_texts!r}",
        )
        for name in (
            "num_steps",
            "contexts_per_step",
            "micro_batch_tokens",
            "row_tokens",
            "distillation_top_k",
            "log_steps",
        ):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "warmup_steps",
            "evaluation_steps",
            "evaluation_contexts",
            "whitening_contexts",
            "weight_decay",
            "seed",
        ):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip", "checkpoint_seconds"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(self.keep_checkpoints > 0, f"keep_checkpoints must be positive, got {self.keep_checkpoints}")
        require(self.num_epochs is None or self.num_epochs > 0, f"num_epochs must be positive, got {self.num_epochs}")
        require(self.memory_rate >= 0, f"memory_rate must not be negative, got {self.memory_rate}")
        require(
            self.distillation_weight >= 0, f"distillation_weight must not be negative, got {self.distillation_weight}"
        )
        require(self.lookup_weight >= 0, f"lookup_weight must not be negative, got {self.lookup_weight}")
        require(
            self.lookup_weight == 0 or self.generator.normalization == "ridge",
            f"lookup_weight needs generator.normalization: ridge, not {self.generator.normalization}",
        )
        for name in ("source_shares", "dropped_shares"):
            shares = getattr(self.encoder_training, name)
            require(
                len(shares) in (0, len(self.sources)),
                f"encoder_training.{name} must hold one number for each of the {len(self.sources)} sources, got "
                f"{list(shares)}",
            )
        asked = self.encoder_training.teacher_sources
        require(
            max(asked, default=-1) < len(self.sources),
            f"encoder_training.teacher_sources must be below {len(self.sources)}, the number of sources, got "
            f"{list(asked)}",
        )
        encoder = self.generator.encoder
        require(
            self.encoder_training.question_word_weight == 0 or (encoder is not None and encoder.surroundings_dim > 0),
            "encoder_training.question_word_weight needs generator.encoder.surroundings_dim",
        )
        require(0 <= self.decay_share <= 1, f"decay_share must lie in 0..1, got {self.decay_share}")
        require(len(self.adam_betas) == 2, f"adam_betas must be two numbers, got {list(self.adam_betas)}")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step` (from 0): linear warm-up, constant, linear decay over the last `decay_share`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        start = max(self.warmup_steps, round(self.num_steps * (1 - self.decay_share)))
        if step < start:
            return self.learning_rate
        progress = (step - start) / max(1, self.num_steps - start)
        return self.learning_rate * (1 - (1 - self.final_learning_rate) * min(1.0, progress))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """The recipe in a YAML file, with `a.b=value` overrides applied (list items by index: `sources.0.share=2`).

    Raises:
        ConfigError: for a missing file, broken YAML, an unknown setting or a wrong value.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the recipe {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings at the top")
    for override in overrides:
        _apply_override(values, override)
    return from_mapping(TrainingRecipe, values)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must look like a.b=value, got {override!r}")
    place: Any = values
    parts = key.split(".")
    for part in parts[:-1]:
        place = place[_list_index(part, place, override)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"override {override!r}: {part!r} holds no settings")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {text!r} is no YAML value; quote it if it is a text") from error
    if isinstance(place, list):
        place[_list_index(parts[-1], place, override)] = value
    else:
        place[parts[-1]] = value


def _list_index(part: str, place: list[Any], override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise ConfigError(f"override {override!r}: {part!r} must be an index below {len(place)}")
    return int(part)
