"""New generators have the form of their config and base model; what doesn't fit is refused."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.generator_building import build_generator, generator_of_weights
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.config import GeneratorConfig
from generative_adapter.errors import ConfigError, UnsupportedArchitectureError
from generative_adapter.generator.generator import AdapterGenerator
from tiny_models import HIDDEN, INNER, LAYERS, tiny_base, tiny_config, tiny_encoder_config


def test_a_new_generator_has_the_form_of_its_config(tiny_llama_base: BaseModel) -> None:
    config = tiny_config(layers=(0, -1), state_dim=11, rank=7, scale=0.375, value_shift=1)
    generator = build_generator(config, tiny_llama_base)
    assert isinstance(generator, AdapterGenerator)
    target = generator[f"model.layers.{LAYERS - 1}.mlp.down_proj"]
    assert target.query_proj.shape == (11, INNER) and target.output_proj.shape == (HIDDEN, 11)
    assert (target.rank, target.scale, target.value_shift, target.normalization) == (7, 0.375, 1, "svd")
    assert generator.layers == (0, LAYERS - 1)
    with pytest.raises(UnsupportedArchitectureError, match="no_such_proj"):
        build_generator(tiny_config(targets=("no_such_proj",)), tiny_llama_base)


def test_a_new_encoder_knows_the_final_norm() -> None:
    base = tiny_base("llama")
    norm = base.model.get_submodule("model.norm").weight
    with torch.no_grad():
        norm.copy_(torch.linspace(-3, 3, HIDDEN))
    made = build_generator(tiny_encoder_config(), base).named_weights()
    expected = made["memory.word_proj"].mT / norm.unsqueeze(1)
    torch.testing.assert_close(made["memory.word_directions"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": (1, LAYERS)}, f"block {LAYERS} is out of range: the base model has {LAYERS} blocks"),
        ({"constant_from_layer": LAYERS + 1}, f"block {LAYERS + 1} is out of range"),
    ],
)
def test_an_encoder_that_does_not_fit_the_base_is_refused(
    tiny_llama_base: BaseModel, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_generator(tiny_encoder_config(change), tiny_llama_base)
    with pytest.raises(ConfigError, match=f"gate_proj has {INNER} outputs, not the {HIDDEN}"):
        build_generator(tiny_encoder_config(targets=("gate_proj",)), tiny_llama_base)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(key_windows=(4, -8)),
        tiny_encoder_config(),
        tiny_encoder_config({"unit_layers": (1,), "constant_rank": 0}),
    ],
    ids=["paper", "encoder", "units"],
)
def test_weights_alone_give_a_generator_of_their_form(tiny_llama_base: BaseModel, config: GeneratorConfig) -> None:
    made = build_generator(config, tiny_llama_base)
    alone = generator_of_weights(config, made.named_weights())
    assert set(alone.targets) == set(made.targets)
    weights, shapes = made.named_weights(), {name: each.shape for name, each in alone.named_weights().items()}
    assert shapes == {name: each.shape for name, each in weights.items()}
    some = next(name for name in weights if name.endswith("output_proj"))
    with pytest.raises(KeyError, match="output_proj"):
        generator_of_weights(config, {name: each for name, each in weights.items() if name != some})
