"""Draws the passages of a run and reads them once with the frozen base model; done again only when the recipe changes.

Leaves out: what is learned from them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from generative_adapter.base_model.loading import BaseModel, load_base_model
from generative_adapter.base_model.prompts import end_ids
from generative_adapter.base_model.targets import all_linears, find_blocks
from generative_adapter.config import TargetShape
from generative_adapter.config_mapping import to_mapping
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.storage import write_json
from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates
from generative_adapter.training.encoder.passages import Passage, load_passages, passage, save_passages
from generative_adapter.training.encoder.teacher import TaughtAnswer, TeacherAnswers
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.token_cache import prepare

logger = logging.getLogger(__name__)

FOLDER = "frozen-states"
_LONGEST_QUESTION = 96  # tokens with the answer
_DONE = "states.json"


def prepared_states(
    recipe: TrainingRecipe,
    base: BaseModel,
    generator: EncoderGenerator,
    processes: Processes,
    progress: Callable[[str, int, int], None] | None = None,
) -> FrozenStates:
    """The states of a run's passages, open for reading; drawn and computed where they aren't there yet.

    Args:
        recipe: the run's.
        base: the frozen base model.
        generator: says which states are wanted.
        processes: of the run; each computes a part.
        progress: called with what is done, how much of it, and how much there is.
    """
    folder = Path(recipe.output) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    digest = _digest(recipe, base)
    path = folder / "passages.json"
    if processes.is_first and load_passages(path, digest) is None:
        save_passages(path, draw_passages(recipe, base, progress), digest)
    processes.wait()
    passages = load_passages(path, digest)
    assert passages is not None
    start, other = start_block(recipe, generator), recipe.encoder_training.states_from
    targets = lookup_targets(recipe, generator) if recipe.encoder_training.lookup_steps else ()
    num_labels = recipe.encoder_training.lookup_labels
    wanted = {
        "digest": digest,
        "states": list(generator.layers[1:]),
        "start_block": start,
        "targets": [target.name for target in targets],
        "num_labels": num_labels,
        "base": base.fingerprint,
    }
    done = folder / _DONE
    there = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else None
    known = None
    if other is not None and there != wanted:  # else the folder holds all states itself
        known = _states_there(base, Path(other) / FOLDER, generator.hidden_size)
        wanted["read_from"] = os.path.relpath(known.folder, folder)
    states = FrozenStates(
        folder, passages, generator.layers[1:], start, targets, num_labels, generator.hidden_size, known
    )
    if there == wanted:
        states.open()
        return states
    processes.wait()
    if processes.is_first:
        done.unlink(missing_ok=True)
        states.open("w+")
    processes.wait()
    states.open("r+")
    states.fill(base, processes.rank, processes.size, progress)
    processes.wait()
    if processes.is_first:
        write_json(done, wanted)
    states.open()
    return states


def taught_answers(
    recipe: TrainingRecipe,
    base: BaseModel,
    states: FrozenStates,
    processes: Processes,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[Asked, TaughtAnswer]:
    """What the recipe's teacher says where questions are answered; asked where it wasn't yet. Empty without a teacher.

    Args:
        recipe: the run's.
        base: the frozen base model.
        states: the passages.
        processes: of the run; each asks a part.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        ConfigError: when the teacher has another tokenizer.
    """
    settings = recipe.encoder_training
    if not settings.teacher_share:
        return {}
    teacher = base
    if settings.teacher is not None:
        teacher = load_base_model(settings.teacher, device=str(base.device), dtype=str(base.dtype).split(".")[-1])
    if teacher.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ConfigError(f"encoder_training.teacher: {teacher.source} has another tokenizer than {base.source}")
    answers = TeacherAnswers(teacher, recipe.prompt, settings.teacher_end, recipe.distillation_top_k)
    for folder in states.folders:
        answers.load(folder)
    sources = settings.teacher_sources or range(len(recipe.sources))
    chosen = [at for at, each in enumerate(states.passages) if not each.held_out and each.source in sources]
    wanted = [states.passages[at] for at in chosen]
    processes.wait()  # all have read the same files before any is written
    answers.fill(wanted, states.folder, processes.rank, processes.size, progress)
    processes.wait()
    answers.load(states.folder)
    return answers.of(wanted, [states.asked[at] for at in chosen])


def draw_passages(
    recipe: TrainingRecipe, base: BaseModel, progress: Callable[[str, int, int], None] | None = None
) -> list[Passage]:
    """Passages to train on, then held-out ones; questions of more than 96 tokens are left out."""
    wanted = recipe.encoder_training.passages
    prepare(recipe, base.tokenizer)
    sampler = ContextSampler(recipe, base.tokenizer)
    end = end_ids(base.tokenizer, recipe.prompt)
    passages: list[Passage] = []
    step = 0
    while len(passages) < wanted:
        passages += [passage(item, end, source=source) for source, item in sampler.step_by_source(step)]
        step += 1
        if progress is not None and step % 100 == 0:
            progress("drawing", len(passages), wanted)
    for source in range(len(recipe.sources)):
        held_out = sampler.held_out(source, recipe.evaluation_contexts)
        passages += [passage(item, end, held_out=True, source=source) for item in held_out]
    short = [_without_long_questions(each) for each in passages]
    return [each for each in short if each.questions]


def _without_long_questions(each: Passage) -> Passage:
    short = tuple(question for question in each.questions if len(question.ids) <= _LONGEST_QUESTION)
    return replace(each, questions=short)


def start_block(recipe: TrainingRecipe, generator: EncoderGenerator) -> int:
    """The highest block that the encoder reads and below which no adapter changes anything.

    Raises:
        ConfigError: when there is none but the embeddings.
    """
    adapted = [target.layer for target in generator.targets] + [block.gate.layer for block in generator.unit_blocks]
    encoder = recipe.generator.encoder
    assert encoder is not None
    if encoder.constant_rank:
        adapted.append(encoder.constant_from_layer)
    found = [state for state in generator.layers if state <= min(adapted)]
    if not found[1:]:
        raise ConfigError(
            f"generator.encoder.states: one of them must lie at or below block {min(adapted)}, the lowest that "
            f"adapters change, got {list(generator.layers[1:])}"
        )
    return found[-1]


def lookup_targets(recipe: TrainingRecipe, generator: EncoderGenerator) -> list[TargetShape]:
    """The linears whose inputs lookups are trained on first: where units take tokens, the gates of their blocks.

    Raises:
        ConfigError: when a block of `lookup_layers` has no target.
    """
    if generator.keeps_tokens:
        return [block.gate for block in generator.unit_blocks]
    layers = recipe.encoder_training.lookup_layers
    found = [target for target in generator.targets if target.layer in layers]
    if missing := set(layers) - {target.layer for target in found}:
        raise ConfigError(f"encoder_training.lookup_layers: no target in block {min(missing)}; see generator.layers")
    return found


def _states_there(base: BaseModel, folder: Path, hidden_size: int) -> FrozenStates:
    """The states that another run of the same base model computed, or reads from a third one.

    Raises:
        ConfigError: when the folder holds none, or those of another base model.
    """
    done = folder / _DONE
    if not done.is_file():
        raise ConfigError(f"encoder_training.states_from: {folder} holds no complete states; name the folder of a run")
    kind = json.loads(done.read_text(encoding="utf-8"))
    if kind.get("base") != base.fingerprint:
        raise ConfigError(f"encoder_training.states_from: the states in {folder} are of another base model")
    passages = load_passages(folder / "passages.json", kind["digest"])
    assert passages is not None
    known = None
    if kind.get("read_from") is not None:
        known = _states_there(base, Path(os.path.normpath(folder / kind["read_from"])), hidden_size)
    linears = {each.name: each for each in all_linears(base.model, range(len(find_blocks(base.model)[1])))}
    targets = [linears[name] for name in kind["targets"]]
    states = FrozenStates(
        folder, passages, kind["states"], kind["start_block"], targets, kind["num_labels"], hidden_size, known
    )
    states.open()
    return states


def _digest(recipe: TrainingRecipe, base: BaseModel) -> str:
    """Of all that decides the passages."""
    settings = to_mapping(recipe)
    names = ("sources", "prompt", "seed", "held_out_texts", "contexts_per_step", "evaluation_contexts")
    kept = {name: settings[name] for name in names}
    kept["chunk_tokens"] = recipe.generator.chunk_tokens
    kept["passages"] = recipe.encoder_training.passages
    kept["base"] = base.fingerprint
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
