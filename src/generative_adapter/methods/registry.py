"""Names of methods and how each is built; a new method is a file and a line of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import ConfigError
from generative_adapter.methods import (
    closed_book,
    continual_pretraining,
    fine_tuning,
    full_context,
    generative_adapter,
    k_shot,
)
from generative_adapter.methods.fine_tuning import SupervisedFineTuning
from generative_adapter.methods.protocol import Method
from generative_adapter.methods.settings import MethodSettings

Builder = Callable[[BaseModel, MethodSettings, Mapping[str, Method]], Method]  # with those built before

METHODS: dict[str, Builder] = {
    "closed-book": lambda base, settings, _: closed_book.build(base, settings),
    "full-context": lambda base, settings, _: full_context.build(base, settings),
    "full-context-cached": lambda base, settings, _: full_context.build_cached(base, settings),
    "generative-adapter": lambda base, settings, _: generative_adapter.build(base, settings),
    "sft-lora": lambda base, settings, _: fine_tuning.build("lora", base, settings),
    "sft-full": lambda base, settings, _: fine_tuning.build("full", base, settings),
    "cpt-lora": lambda base, settings, built: _continual("lora", base, settings, built),
    "cpt-full": lambda base, settings, built: _continual("full", base, settings, built),
    "k-shot-lora": lambda base, settings, _: k_shot.build("lora", base, settings),
    "k-shot-full": lambda base, settings, _: k_shot.build("full", base, settings),
}


def build_methods(names: Sequence[str], base: BaseModel, settings: MethodSettings) -> list[Method]:
    """Methods by name, in order; `sft-...` and the `cpt-...` that goes on from it are trained once.

    Raises:
        ConfigError: for an unknown name, listing the known ones, or one given twice.
        CheckpointError: when a generator can't be read.
        DataError: when fine-tuning has no pairs.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"a method is named twice: {', '.join(names)}; give each once")
    built: dict[str, Method] = {}
    for name in sorted(names, key=lambda each: not each.startswith("sft-")):
        built[name] = METHODS[name](base, settings, built)
    return [built[name] for name in names]


def build_method(name: str, base: BaseModel, settings: MethodSettings) -> Method:
    """One method by name; see `build_methods`."""
    return build_methods([name], base, settings)[0]


def _continual(form: str, base: BaseModel, settings: MethodSettings, built: Mapping[str, Method]) -> Method:
    sft = built.get(f"sft-{form}")
    if not isinstance(sft, SupervisedFineTuning):
        sft = fine_tuning.build(form, base, settings)
    return continual_pretraining.build(settings, sft)
