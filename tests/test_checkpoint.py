"""Generators on disk: round trips with every weight perturbed, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from damaged_files import cut_off, file_metadata, resave
from generative_adapter import checkpoint as checkpoint_module
from generative_adapter.base_model.fingerprint import base_model_fingerprint, tensors_fingerprint
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import (
    GENERATOR_FORMAT,
    GeneratorCheckpoint,
    generator_file_fingerprint,
    generator_fingerprint,
    load_generator,
    load_generator_alone,
    load_weights,
    named_weights,
    read_generator_info,
    save_generator,
    shipped_generator,
)
from generative_adapter.config import EncoderConfig, GeneratorConfig, PromptConfig
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import (
    CheckpointError,
    FingerprintMismatchError,
)
from generative_adapter.generator.memory import ContextMemory
from tiny_models import tiny_base, tiny_checkpoint, tiny_encoder_config

HIDDEN, INNER, STATE, RANK, LAYERS = 24, 41, 11, 7, 3
CONFIG = GeneratorConfig(
    targets=("attention_output", "feed_forward_down"),
    layers=(0, -1),
    state_dim=STATE,
    rank=RANK,
    scale=0.375,
    normalization="svd",
    value_shift=1,
    key_windows=(4, -8),
    chunk_tokens=77,
)
PROMPT = PromptConfig(question="<q>{question}</q>", end="<e>")
TRAINING = {"num_steps": 3, "recipe": {"base_model": "somewhere", "sources": [1, 2.5, None]}}


def make_base(seed: int = 0, *, hidden: int = HIDDEN, layers: int = LAYERS) -> BaseModel:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31,
            hidden_size=hidden,
            intermediate_size=INNER,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    model.eval().requires_grad_(False)
    no_tokenizer = cast(Any, None)
    return BaseModel(model, no_tokenizer, f"tiny-{seed}", "test", base_model_fingerprint(model))


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return make_base()


@pytest.fixture
def written(base: BaseModel) -> GeneratorCheckpoint:
    """A generator of which no tensor has its initial values."""
    generator = build_generator(CONFIG, base)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_()
    return GeneratorCheckpoint(generator, CONFIG, PROMPT, base.name, base.fingerprint, TRAINING)


@pytest.fixture
def path(written: GeneratorCheckpoint, tmp_path: Path) -> Path:
    save_generator(tmp_path / "generator.safetensors", written)
    return tmp_path / "generator.safetensors"


def rewrite(path: Path, settings: dict[str, Any] | str | None = None, **metadata: str | None) -> None:
    """The same tensors with other settings or other metadata; None drops a key."""
    if settings is not None:
        metadata["settings"] = settings if isinstance(settings, str) else json.dumps(settings)
    resave(path, **metadata)


def settings_of(path: Path) -> dict[str, Any]:
    return json.loads(file_metadata(path)["settings"])


# -------------------------------------------------------------------------------------------------------- round trips


def test_a_generator_comes_back_bit_for_bit(written: GeneratorCheckpoint, path: Path, base: BaseModel) -> None:
    read = load_generator(path, base)
    before, after = named_weights(written.generator), named_weights(read.generator)
    assert list(before) == list(after) and len(after) == 2 * 2 * 7  # blocks x targets x tensors
    for name in before:
        assert after[name].dtype == torch.float32 and torch.equal(before[name], after[name])
    assert (read.config, read.prompt, read.training) == (CONFIG, PROMPT, TRAINING)
    assert (read.base_name, read.base_fingerprint) == (base.name, base.fingerprint)
    assert read.fingerprint == written.fingerprint == generator_file_fingerprint(path)
    assert not read.generator.training
    assert not any(parameter.requires_grad for parameter in read.generator.parameters())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("form", ["paper", "encoder"])
def test_a_generator_without_its_base_model_makes_the_same_adapters(form: str, tmp_path: Path) -> None:
    base = tiny_base("llama")
    config = tiny_encoder_config() if form == "encoder" else GeneratorConfig(state_dim=7, rank=7, targets=("v_proj",))
    checkpoint = tiny_checkpoint(base, config)
    save_generator(tmp_path / "g.safetensors", checkpoint)
    alone = load_generator_alone(tmp_path / "g.safetensors")
    assert alone.fingerprint == checkpoint.fingerprint
    assert (alone.config, alone.prompt, alone.base_name) == (config, checkpoint.prompt, base.name)
    memory = GenerativeAdapter(base, checkpoint).contextualize("The roof of the mill is black.")
    expected, made = checkpoint.generator.adapter(memory.states), alone.generator.adapter(memory.states)
    assert made.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(made[name].delta(), expected[name].delta())
    assert alone.generator.layers == checkpoint.generator.layers


def test_a_file_without_its_weights_is_no_generator_alone(path: Path) -> None:
    settings = settings_of(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.endswith("output_proj")}  # noqa: SIM118
    save_file(tensors, path, metadata)
    assert settings
    with pytest.raises(CheckpointError, match="output_proj"):
        load_generator_alone(path)


def test_a_generator_that_was_read_makes_the_same_adapter(
    written: GeneratorCheckpoint, path: Path, base: BaseModel
) -> None:
    hidden = {layer: torch.randn(1, 13, HIDDEN, generator=torch.Generator().manual_seed(9)) for layer in (0, 2)}
    adapters = []
    for generator in (written.generator, load_generator(path, base).generator):
        states = generator.write(hidden)
        adapters.append(generator.adapter({name: state[0].detach() for name, state in states.items()}))
    assert set(adapters[0]) == {
        f"model.layers.{layer}.{target}" for layer in (0, 2) for target in ("self_attn.o_proj", "mlp.down_proj")
    }
    for name in adapters[0]:
        assert torch.equal(adapters[0][name].up, adapters[1][name].up)
        assert torch.equal(adapters[0][name].down, adapters[1][name].down)


def test_bfloat16_storing_rounds_once(
    written: GeneratorCheckpoint, path: Path, base: BaseModel, tmp_path: Path
) -> None:
    half = tmp_path / "half.safetensors"
    save_generator(half, written, torch.bfloat16)
    assert read_generator_info(half)["dtype"] == "BF16"
    assert read_generator_info(half)["num_parameters"] == written.generator.num_parameters
    assert half.stat().st_size < 0.6 * path.stat().st_size
    read = load_generator(half, base)
    for name, tensor in named_weights(read.generator).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, named_weights(written.generator)[name].bfloat16().float())
    assert read.fingerprint != written.fingerprint  # other weights, other memories
    again = tmp_path / "again.safetensors"
    save_generator(again, read, torch.bfloat16)
    assert load_generator(again, base).fingerprint == read.fingerprint == generator_file_fingerprint(half)


def test_info_needs_no_base_model(written: GeneratorCheckpoint, path: Path, base: BaseModel) -> None:
    info = read_generator_info(path)
    attention = 2 * HIDDEN + HIDDEN + HIDDEN + 2 * HIDDEN  # keys and values, queries, output, two windows
    feed_forward = 2 * HIDDEN + INNER + HIDDEN + 2 * HIDDEN
    assert info["num_parameters"] == 2 * (STATE * (attention + feed_forward) + 2 * HIDDEN)
    assert info["num_parameters"] == written.generator.num_parameters
    assert (info["num_tensors"], info["dtype"], info["num_bytes"]) == (28, "F32", path.stat().st_size)
    assert info["generator"]["layers"] == [0, -1] and info["generator"]["state_dim"] == STATE
    assert info["prompt"]["question"] == PROMPT.question
    assert (info["base_name"], info["base_fingerprint"], info["training"]) == (base.name, base.fingerprint, TRAINING)


def test_a_generator_without_hidden_norm_has_no_norm_weights(base: BaseModel, tmp_path: Path) -> None:
    config = replace(CONFIG, hidden_norm=False)
    generator = build_generator(config, base)
    assert not any("norm_weight" in name for name in named_weights(generator))
    path = tmp_path / "plain.safetensors"
    save_generator(path, GeneratorCheckpoint(generator, config, PROMPT, base.name, base.fingerprint))
    assert load_generator(path, base).generator["model.layers.0.mlp.down_proj"].norm_weight is None


# -------------------------------------------------------------------------------------------------------- fingerprint


def test_every_weight_and_setting_is_in_the_fingerprint(written: GeneratorCheckpoint) -> None:
    seen = {written.fingerprint}
    for parameter in written.generator.parameters():
        with torch.no_grad():
            original = parameter.clone()
            parameter.view(-1)[-1] += 1e-3
            seen.add(written.fingerprint)
            parameter.copy_(original)
    assert len(seen) == 29
    for change in ({"scale": 0.25}, {"chunk_tokens": 78}, {"value_shift": 0}, {"rank": 6}, {"key_windows": (4, -7)}):
        seen.add(generator_fingerprint(written.generator, replace(CONFIG, **change)))
    assert len(seen) == 34
    seen.add(generator_fingerprint(written.generator, replace(CONFIG, subspace_iterations=2)))
    assert len(seen) == 35
    assert generator_fingerprint(written.generator, CONFIG) in seen


def test_a_file_from_before_a_setting_keeps_its_fingerprint(
    written: GeneratorCheckpoint, path: Path, base: BaseModel
) -> None:
    """So that the memories which that generator wrote can still be read."""
    settings = settings_of(path)
    del settings["generator"]["subspace_iterations"], settings["generator"]["encoder"]
    rewrite(path, settings)
    read = load_generator(path, base)
    assert read.config == CONFIG and read.config.subspace_iterations == 0
    old = tensors_fingerprint(named_weights(read.generator), json.dumps(settings["generator"], sort_keys=True))
    assert read.fingerprint == written.fingerprint == old


def test_subspace_iterations_come_back(written: GeneratorCheckpoint, base: BaseModel, tmp_path: Path) -> None:
    config = replace(CONFIG, subspace_iterations=3)
    path = tmp_path / "iterated.safetensors"
    generator = build_generator(config, base)
    save_generator(path, GeneratorCheckpoint(generator, config, PROMPT, base.name, base.fingerprint))
    read = load_generator(path, base)
    assert read.config == config
    assert read.generator["model.layers.0.mlp.down_proj"].subspace_iterations == 3


# ------------------------------------------------------------------------------------------------------- with encoder

ENCODED = GeneratorConfig(
    targets=("feed_forward_down",),
    layers=(1, -1),
    state_dim=STATE,
    rank=RANK,
    scale=0.375,
    normalization="ridge",
    chunk_tokens=77,
    encoder=EncoderConfig(
        states=(1, 2),
        width=12,
        heads=2,
        layers=1,
        largest_distance=3,
        reading_rank=2,
        reading_from_layer=0,
        constant_rank=3,
        constant_from_layer=1,
    ),
)


@pytest.fixture
def encoded(base: BaseModel) -> GeneratorCheckpoint:
    """A generator with an encoder; no tensor has its initial values, buffers included."""
    generator = build_generator(ENCODED, base)
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in generator.named_weights().values():
            weight.normal_()
    return GeneratorCheckpoint(generator, ENCODED, PROMPT, base.name, base.fingerprint, TRAINING)


def test_a_generator_with_an_encoder_comes_back_bit_for_bit(
    encoded: GeneratorCheckpoint, base: BaseModel, tmp_path: Path
) -> None:
    path = tmp_path / "encoded.safetensors"
    save_generator(path, encoded)
    read = load_generator(path, base)
    before, after = named_weights(encoded.generator), named_weights(read.generator)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (read.config, read.prompt, read.training) == (ENCODED, PROMPT, TRAINING)
    assert read.fingerprint == encoded.fingerprint == generator_file_fingerprint(path)
    own = [*read.generator.parameters(), *read.generator.buffers()]
    assert len(after) == len(own) == 11 + 8 + 2 * 4 + 2 * 14 + 2 * 4  # encoder, memory, targets, reading, constant
    assert not any(tensor.requires_grad for tensor in own) and not read.generator.training
    info = read_generator_info(path)
    assert info["num_parameters"] == read.generator.num_parameters == sum(tensor.numel() for tensor in own)
    assert info["num_tensors"] == len(own) and info["generator"]["encoder"]["states"] == [1, 2]
    hidden = {layer: torch.randn(1, 13, HIDDEN, generator=torch.Generator().manual_seed(9)) for layer in (0, 1, 2)}
    with torch.no_grad():
        adapters = [g.adapter({"memory": g.write(hidden)["memory"][0]}) for g in (encoded.generator, read.generator)]
    assert set(adapters[0]) == {f"model.layers.{n}.{t}" for n in (1, 2) for t in ("self_attn.o_proj", "mlp.down_proj")}
    for name in adapters[0]:
        assert torch.equal(adapters[0][name].up, adapters[1][name].up)
        assert torch.equal(adapters[0][name].down, adapters[1][name].down)


def test_every_weight_and_setting_of_an_encoder_is_in_the_fingerprint(encoded: GeneratorCheckpoint) -> None:
    weights = encoded.generator.named_weights()
    seen = {encoded.fingerprint}
    with torch.no_grad():
        for weight in weights.values():
            original = weight.clone()
            weight.view(-1)[-1] += 1e-3
            seen.add(encoded.fingerprint)
            weight.copy_(original)
    assert len(seen) == len(weights) + 1 and encoded.fingerprint in seen
    assert ENCODED.encoder is not None
    for change in ({"heads": 3}, {"largest_distance": 4}, {"constant_from_layer": 2}):
        changed = replace(ENCODED, encoder=replace(ENCODED.encoder, **change))
        seen.add(generator_fingerprint(encoded.generator, changed))
    assert len(seen) == len(weights) + 4


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_not_written(written: GeneratorCheckpoint, tmp_path: Path, value: float) -> None:
    with torch.no_grad():
        written.generator["model.layers.2.self_attn.o_proj"].key_proj[3, 5] = value
    with pytest.raises(CheckpointError, match=r"1 tensors hold non-finite .* model.layers.2.self_attn.o_proj.key_proj"):
        save_generator(tmp_path / "broken.safetensors", written)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_overflow_the_number_format_are_not_written(written: GeneratorCheckpoint, path: Path) -> None:
    old = path.read_bytes()
    with torch.no_grad():
        written.generator["model.layers.0.self_attn.o_proj"].value_proj[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="non-finite"):
        save_generator(path, written, torch.float16)
    assert path.read_bytes() == old


def test_another_base_model_is_refused_unless_any_is_allowed(path: Path) -> None:
    other = make_base(1)
    with pytest.raises(FingerprintMismatchError, match=r"was trained for tiny-0 .*, not for tiny-1"):
        load_generator(path, other)
    read = load_generator(path, other, any_base=True)
    assert read.base_name == "tiny-0"


def test_any_base_still_needs_the_same_shapes(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has shape \(11, 24\), expected \(11, 32\)|norm_weight has shape"):
        load_generator(path, make_base(2, hidden=32), any_base=True)
    with pytest.raises(CheckpointError, match=r"doesn't fit this generator: 14 tensors missing .*, 14 unknown"):
        load_generator(path, make_base(2, layers=2), any_base=True)


def test_weights_that_do_not_fit_are_named(base: BaseModel) -> None:
    generator = build_generator(CONFIG, base)
    tensors = {name: tensor.clone() for name, tensor in named_weights(generator).items()}
    first = next(iter(tensors))
    with pytest.raises(CheckpointError, match=rf"here doesn't fit .*: 1 tensors missing \['{first}'\], 0 unknown"):
        load_weights(generator, {name: tensor for name, tensor in tensors.items() if name != first}, "here")
    with pytest.raises(CheckpointError, match=r"0 tensors missing \[\], 1 unknown \['extra'\]"):
        load_weights(generator, {**tensors, "extra": torch.zeros(1)}, "here")
    with pytest.raises(CheckpointError, match=rf"here: {first} has shape \(5,\), expected"):
        load_weights(generator, {**tensors, first: torch.zeros(5)}, "here")


def test_a_missing_file_is_refused(base: BaseModel, tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no generator file at"):
            load_generator(path, base)
        with pytest.raises(CheckpointError, match="no generator file at"):
            read_generator_info(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.999])
def test_a_cut_off_file_is_refused(path: Path, base: BaseModel, part: float) -> None:
    cut_off(path, part)
    for read in (lambda: load_generator(path, base), lambda: read_generator_info(path)):
        with pytest.raises(CheckpointError, match="can't be read as safetensors"):
            read()


def test_other_files_are_refused(path: Path, base: BaseModel, tmp_path: Path) -> None:
    memory = tmp_path / "memory.safetensors"
    ContextMemory({"t": torch.zeros(3, 3)}, "generator", "base").save(memory)
    with pytest.raises(CheckpointError, match="is not a generator: its format is 'generative-adapter-memory'"):
        load_generator(memory, base)
    with pytest.raises(CheckpointError, match="is not a memory"):
        ContextMemory.load(path)
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, weights)
    with pytest.raises(CheckpointError, match="its format is None"):
        read_generator_info(weights)


def test_a_version_from_the_future_is_refused(path: Path, base: BaseModel) -> None:
    rewrite(path, version="2")
    with pytest.raises(CheckpointError, match="is a generator of version 2, this release reads version 1"):
        load_generator(path, base)


@pytest.mark.parametrize("section", ["generator", "prompt"])
def test_settings_of_a_later_release_are_refused(path: Path, base: BaseModel, section: str) -> None:
    settings = settings_of(path)
    settings[section]["dropout"] = 0.5
    rewrite(path, settings)
    with pytest.raises(CheckpointError, match=rf"can't be read by this release: {section}: unknown setting 'dropout'"):
        load_generator(path, base)
    assert read_generator_info(path)[section]["dropout"] == 0.5


@pytest.mark.parametrize("settings", ["", "{", "[]", "null", '{"generator": {}}'])
def test_damaged_settings_are_refused(path: Path, base: BaseModel, settings: str) -> None:
    rewrite(path, settings)
    for read in (lambda: load_generator(path, base), lambda: read_generator_info(path)):
        with pytest.raises(CheckpointError, match="its settings are damaged"):
            read()


def test_missing_settings_are_refused(path: Path) -> None:
    rewrite(path, settings=None)
    assert read_generator_info(path)["num_tensors"] == 28  # the rewritten file is still whole
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.unlink()
    save_file(tensors, path, {"format": GENERATOR_FORMAT, "version": "1"})
    with pytest.raises(CheckpointError, match="its settings are damaged: 'settings'"):
        read_generator_info(path)


def test_the_shipped_generator_is_looked_for_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "__file__", str(tmp_path / "checkpoint.py"))
    with pytest.raises(CheckpointError, match="this installation has no shipped generator"):
        shipped_generator()
    file = tmp_path / "checkpoints" / "smollm2-135m-instruct.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"")
    assert shipped_generator() == file
