"""Settings: what they refuse, and that they survive JSON."""

import json
from dataclasses import dataclass, field

import pytest

from generative_adapter.config import EncoderConfig, GeneratorConfig, PromptConfig, TargetShape, require
from generative_adapter.config_mapping import from_mapping, to_mapping
from generative_adapter.errors import ConfigError


@dataclass(frozen=True)
class Nested:
    """A stand-in for a recipe: settings inside settings."""

    rate: float
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    shapes: tuple[TargetShape, ...] = ()
    name: str | None = None
    fast: bool = False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ()}, "generator.targets is empty"),
        ({"targets": ("o_proj", "o_proj")}, "generator.targets repeats a name"),
        ({"state_dim": 0}, "generator.state_dim must be positive, got 0"),
        ({"rank": 0}, r"generator.rank must lie in 1..state_dim \(128\), got 0"),
        ({"rank": 129}, r"generator.rank must lie in 1..state_dim \(128\), got 129"),
        ({"rank": 64}, "newton_schulz keeps all 128 directions: set generator.rank to 128, or use normalization: svd"),
        ({"rank": 64, "normalization": "frobenius"}, "frobenius keeps all 128 directions"),
        ({"normalization": "SVD"}, "must be one of svd, frobenius, newton_schulz, ridge, got 'SVD'"),
        ({"scale": 0.0}, "generator.scale must be positive"),
        ({"scale": float("nan")}, "generator.scale must be positive, got nan"),
        ({"value_shift": -1}, "generator.value_shift must not be negative"),
        ({"key_windows": (4, 0)}, r"generator.key_windows must be different non-zero token counts, got \[4, 0\]"),
        ({"value_layer": -1}, "generator.value_layer must not be negative, got -1"),
        ({"window_gates": True}, "generator.window_gates needs generator.key_windows"),
        ({"key_windows": (4, 4)}, "generator.key_windows must be different"),
        ({"chunk_tokens": 0}, "generator.chunk_tokens must be positive"),
        ({"normalization": "svd", "subspace_iterations": -1}, "subspace_iterations must not be negative, got -1"),
        ({"subspace_iterations": 2}, "subspace_iterations belongs to normalization: svd; remove it for newton_schulz"),
    ],
)
def test_a_generator_config_refuses_what_can_not_work(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": ()}, r"states must be ascending block indices above 0 .*, got \[\]"),
        ({"states": (0, 4)}, r"states must be .*, got \[0, 4\]"),
        ({"states": (4, 2)}, r"states must be .*, got \[4, 2\]"),
        ({"states": (4, 4)}, r"states must be .*, got \[4, 4\]"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"heads": -1}, "heads must be positive, got -1"),
        ({"heads": 5}, r"width must be a multiple of heads \(5\), got 384"),
        ({"largest_distance": 0}, "largest_distance must be positive, got 0"),
        ({"layers": -1}, "layers must not be negative, got -1"),
        ({"reading_rank": -1}, "reading_rank must not be negative"),
        (
            {"reading_rank": 8, "reading_from_layer": 24},
            r"reading_from_layer must lie below the last of states \(24\), .* got 24",
        ),
        ({"constant_rank": -2}, "constant_rank must not be negative"),
        ({"constant_targets": ()}, "constant_targets is empty; name at least one, or set constant_rank to 0"),
        ({"constant_from_layer": -1}, "constant_from_layer must not be negative"),
    ],
)
def test_an_encoder_config_refuses_what_can_not_work(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"generator.encoder.{message}"):
        EncoderConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "newton_schulz"}, "with an encoder needs generator.normalization: ridge, got 'newton_sch"),
        ({"rank": 129}, r"generator.rank must lie in 1..state_dim \(128\), got 129"),
        ({"hidden_norm": False}, "generator.hidden_norm belongs to the paper's generator; remove it, or generator.enc"),
        ({"value_shift": 1}, "generator.value_shift belongs to the paper's"),
        ({"value_layer": 0}, "generator.value_layer belongs to the paper's"),
        ({"key_windows": (4,)}, "generator.key_windows belongs to the paper's"),
        ({"write_gate": True}, "generator.write_gate belongs to the paper's"),
    ],
)
def test_an_encoder_and_the_papers_settings_exclude_one_another(settings: dict, message: str) -> None:
    assert GeneratorConfig(normalization="ridge", rank=100, encoder=EncoderConfig()).rank == 100
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig(**{"normalization": "ridge", "encoder": EncoderConfig()} | settings)


def test_an_encoder_is_read_from_nested_settings() -> None:
    read = from_mapping(GeneratorConfig, {"normalization": "ridge", "encoder": {"states": [3, 5], "heads": 4}})
    assert read.encoder == EncoderConfig(states=(3, 5), heads=4)
    assert from_mapping(GeneratorConfig, {"encoder": None}) == GeneratorConfig()
    with pytest.raises(ConfigError, match=r"encoder: unknown setting 'widht'; did you mean 'width'\?"):
        from_mapping(GeneratorConfig, {"encoder": {"widht": 3}})


def test_svd_may_have_a_smaller_rank() -> None:
    config = GeneratorConfig(rank=16, normalization="svd")
    assert (config.rank, config.state_dim) == (16, 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": "Answer:"}, "prompt.question must hold {question}, got 'Answer:'"),
        ({"context": "{question}"}, "prompt.context must hold {context}"),
        ({"context": "{context}"}, "prompt.context must hold {question}"),
    ],
)
def test_a_prompt_must_have_room_for_its_parts(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptConfig(**settings)


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(),
        GeneratorConfig(("a", "b.c"), (0, 5, -1), 64, 16, 0.125, "svd", False, 2, 0, (4, -8), True, True, 77, 3),
        GeneratorConfig(normalization="ridge", encoder=EncoderConfig((2, 7), 24, 1, 3, 9, 4, 2, 0, ("v_proj",), 5)),
        PromptConfig(),
        PromptConfig("<|user|>{question}\n", "{context} – {question}", "\n"),
        Nested(0.5, GeneratorConfig(layers=(3,)), (TargetShape("t", 1, 17, 19),), "name", True),
    ],
)
def test_settings_survive_json(config: object) -> None:
    text = json.dumps(to_mapping(config))
    assert from_mapping(type(config), json.loads(text)) == config
    assert to_mapping(from_mapping(type(config), json.loads(text))) == to_mapping(config)


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    read = from_mapping(Nested, {"rate": 2, "generator": {"layers": [1, 4], "scale": 1}, "shapes": []})
    assert read.rate == 2.0 and isinstance(read.rate, float)
    assert read.generator.layers == (1, 4)
    assert isinstance(read.generator.scale, float)
    assert from_mapping(Nested, {"rate": "1e-3"}).rate == 1e-3  # as YAML reads 1e-3
    assert from_mapping(Nested, {"rate": 1, "name": None}).name is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rate": 1, "generator": {"state_dmi": 3}},
            r"generator: unknown setting 'state_dmi'; did you mean 'state_dim'\?",
        ),
        ({"rate": 1, "zzz": 3}, "Nested: unknown setting 'zzz'; known: fast, generator, name, rate, shapes"),
        ({"rate": 1, 7: 3}, "Nested: unknown setting 7"),
        ({}, "Nested: the setting 'rate' is missing"),
        ({"rate": 1, "shapes": [{"name": "t", "layer": 1}]}, r"shapes\[0\]: the setting 'in_features' is missing"),
        ({"rate": "fast"}, "rate: expected float, got 'fast'"),
        ({"rate": True}, "rate: expected float, got True"),
        ({"rate": None}, "rate: expected float, got None"),
        ({"rate": 1, "fast": 1}, "fast: expected bool, got 1"),
        ({"rate": 1, "name": 3}, "name: expected str, got 3"),
        ({"rate": 1, "generator": {"state_dim": "128"}}, "generator.state_dim: expected int, got '128'"),
        ({"rate": 1, "generator": {"state_dim": True}}, "generator.state_dim: expected int, got True"),
        ({"rate": 1, "generator": {"state_dim": 64.0}}, "generator.state_dim: expected int, got 64.0"),
        ({"rate": 1, "generator": {"targets": "o_proj"}}, "generator.targets: expected a list, got 'o_proj'"),
        ({"rate": 1, "generator": {"layers": [0, "1"]}}, r"generator.layers\[1\]: expected int, got '1'"),
        ({"rate": 1, "generator": [1]}, "generator: expected a mapping of settings, got list"),
        ({"rate": 1, "generator": {"rank": 64}}, "newton_schulz keeps all 128 directions"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Nested, values)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="GeneratorConfig: expected a mapping of settings, got NoneType"):
        from_mapping(GeneratorConfig, None)


def test_the_place_can_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^prompt: unknown setting 'questions'; did you mean 'question'"):
        from_mapping(PromptConfig, {"questions": ""}, "prompt")
    with pytest.raises(ConfigError, match=r"^prompt.end: expected str"):
        from_mapping(PromptConfig, {"end": 3}, "prompt")


def test_require() -> None:
    require(True, "never shown")
    with pytest.raises(ConfigError, match=r"^shown$"):
        require(False, "shown")
    assert issubclass(ConfigError, ValueError)
