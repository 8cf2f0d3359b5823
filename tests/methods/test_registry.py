"""Methods by name."""

from __future__ import annotations

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import save_generator
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.continual_pretraining import ContinualPretraining
from generative_adapter.methods.protocol import Query, Wording
from generative_adapter.methods.registry import METHODS, build_method, build_methods
from generative_adapter.methods.settings import MethodSettings
from tiny_models import tiny_checkpoint

WORDING = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:")


def test_every_method_is_built_and_has_its_name(tiny_llama_base: BaseModel, tmp_path) -> None:
    path = tmp_path / "generator.safetensors"
    save_generator(path, tiny_checkpoint(tiny_llama_base))
    settings = MethodSettings(WORDING, generator=path, training_pairs=(("Who?", "Ada"),))
    names = list(METHODS)[::-1]
    built = build_methods(names, tiny_llama_base, settings)
    assert [method.name for method in built] == names
    by_name = dict(zip(names, built, strict=True))
    for form in ("lora", "full"):
        continual = by_name[f"cpt-{form}"]
        assert isinstance(continual, ContinualPretraining) and continual.sft is by_name[f"sft-{form}"]


def test_settings_reach_methods(tiny_llama_base: BaseModel, context, tmp_path) -> None:
    settings = MethodSettings(
        WORDING,
        batching=Batching(max_rows=2),
        max_prompt_tokens=150,
        reserve_tokens=40,
        training_pairs=(("Who?", "Ada"),),
        validation_pairs=(("Where?", "Ulm"),),
        learning_rates={"cpt-full": 1e-3, "sft-full": 2e-3},
        max_epochs={"cpt-full": 2},
        seed=5,
    )
    for name in ("full-context", "full-context-cached"):
        method = build_method(name, tiny_llama_base, settings)
        [answer] = method.answer(method.take_in(context), [Query("Who naps?")], WORDING, 4)
        assert answer.num_prompt_tokens + answer.num_cached_tokens <= 146
    method = build_method("cpt-full", tiny_llama_base, settings)
    assert isinstance(method, ContinualPretraining) and method.sft is not None
    assert (method.settings.learning_rate, method.settings.max_epochs, method.settings.seed) == (1e-3, 2, 5)
    assert (method.settings.batch_size, method.sft.settings.batch_size) == (16, 64)
    assert (method.sft.settings.learning_rate, method.sft.settings.max_epochs) == (2e-3, 4)
    assert method.sft.validation == (("Where?", "Ulm"),)
    state = method.take_in(context)
    assert len(state.fits[0].losses) == 2
    default = build_method("k-shot-full", tiny_llama_base, MethodSettings(WORDING))
    assert default.settings.max_epochs == 40


def test_what_is_unknown_is_said(tiny_llama_base: BaseModel) -> None:
    settings = MethodSettings(WORDING)
    with pytest.raises(ConfigError, match=r"'open-book'; known: closed-book, full-context, .*k-shot-full"):
        build_methods(["closed-book", "open-book"], tiny_llama_base, settings)
    with pytest.raises(ConfigError, match="twice"):
        build_methods(["closed-book", "closed-book"], tiny_llama_base, settings)
    with pytest.raises(DataError, match="no question-answer pair"):
        build_method("cpt-full", tiny_llama_base, settings)
    with pytest.raises(ConfigError, match="lora_rank"):
        MethodSettings(WORDING, lora_rank=0)
