"""Names of methods and how each is built; a new method is a file and a line of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import ConfigError
from generative_adapter.methods import (
    closed_book,
    continual_pretraining,
    fine_tuning,
    full_context,
    generative_adapter,
    k_shot,
    no_adapter,
)
from generative_adapter.methods.fine_tuning import SupervisedFineTuning
from generative_adapter.methods.protocol import Method
from generative_adapter.methods.settings import MethodSettings

_FITTED = ("learning_rates", "max_epochs", "batch_sizes", "lora_rank", "seed")
SETTINGS_USED: dict[str, tuple[str, ...]] = {
    "closed-book": (),
    "full-context": ("max_prompt_tokens", "reserve_tokens"),
    "full-context-cached": ("max_prompt_tokens", "reserve_tokens"),
    "no-adapter": ("generator", "task_wording"),
    "generative-adapter": ("generator", "any_base", "task_wording", "memory_dtype"),
    **{f"{kind}-{form}": ("training_pairs", *_FITTED) for kind in ("sft", "cpt") for form in ("lora", "full")},
    **{f"k-shot-{form}": _FITTED for form in ("lora", "full")},
}
"""Fields of `MethodSettings` that a method's answers depend on; all of them where a method isn't listed."""

Builder = Callable[[BaseModel, MethodSettings, dict[str, Method]], Method]  # with those built before

METHODS: dict[str, Builder] = {
    "closed-book": lambda base, settings, _: closed_book.build(base, settings),
    "full-context": lambda base, settings, _: full_context.build(base, settings),
    "full-context-cached": lambda base, settings, _: full_context.build_cached(base, settings),
    "no-adapter": lambda base, settings, _: no_adapter.build(base, settings),
    "generative-adapter": lambda base, settings, _: generative_adapter.build(base, settings),
    "sft-lora": lambda base, settings, _: fine_tuning.build("lora", base, settings),
    "sft-full": lambda base, settings, _: fine_tuning.build("full", base, settings),
    "cpt-lora": lambda base, settings, built: _continual("lora", base, settings, built),
    "cpt-full": lambda base, settings, built: _continual("full", base, settings, built),
    "k-shot-lora": lambda base, settings, _: k_shot.build("lora", base, settings),
    "k-shot-full": lambda base, settings, _: k_shot.build("full", base, settings),
}


def check_names(names: Sequence[str]) -> None:
    """Refuses names of methods that there are none of, and a name given twice.

    Raises:
        ConfigError: says which; lists the known ones.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"a method is named twice: {', '.join(names)}; give each once")


def build_into(built: dict[str, Method], name: str, base: BaseModel, settings: MethodSettings) -> Method:
    """The method of a name among those that are built, which it joins if it is not there yet.

    `cpt-...` goes on from the `sft-...` that is there, so that this is trained once.

    Args:
        built: methods by name, of the same base model and settings.
        name: of the method.
        base: the base model.
        settings: of all methods.

    Raises:
        CheckpointError: when a generator can't be read.
        DataError: when fine-tuning has no pairs.
    """
    if name not in built:
        built[name] = METHODS[name](base, settings, built)
    return built[name]


def build_methods(names: Sequence[str], base: BaseModel, settings: MethodSettings) -> list[Method]:
    """Methods by name, in order; `sft-...` and the `cpt-...` that goes on from it are trained once.

    Raises:
        ConfigError: for an unknown name, listing the known ones, or one given twice.
        CheckpointError: when a generator can't be read.
        DataError: when fine-tuning has no pairs.
    """
    check_names(names)
    built: dict[str, Method] = {}
    return [build_into(built, name, base, settings) for name in names]


def build_method(name: str, base: BaseModel, settings: MethodSettings) -> Method:
    """One method by name; see `build_methods`."""
    return build_methods([name], base, settings)[0]


def _continual(form: str, base: BaseModel, settings: MethodSettings, built: dict[str, Method]) -> Method:
    sft = build_into(built, f"sft-{form}", base, settings)
    if not isinstance(sft, SupervisedFineTuning):
        raise ConfigError(f"cpt-{form} goes on from supervised fine-tuning, found {type(sft).__name__}")
    return continual_pretraining.build(settings, sft)
