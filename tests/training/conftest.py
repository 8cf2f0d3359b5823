"""A tiny random Llama with a small trained tokenizer in a folder, and recipes that train on it in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel, load_base_model
from generative_adapter.config import GeneratorConfig
from generative_adapter.data.facts import sample_facts_record
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.encoder.frozen_states import FrozenStates
from generative_adapter.training.encoder.preparing import prepared_states
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe, load_recipe
from tiny_models import randomize


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that runs can be compared bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder: three blocks, 701 words learnt from synthetic facts, no begin-of-sequence token."""
    folder = tmp_path_factory.mktemp("tiny-base")
    rng = random.Random(0)
    texts = [sample_facts_record(rng, num_facts=8) for _ in range(60)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=701,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [text for record in texts for text in (record.context, *(q.question for q in record.questions))]
    backend.train_from_iterator(sentences, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=28,
        intermediate_size=41,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(base_folder: Path) -> BaseModel:
    """The model of `base_folder` in float32; not to be changed."""
    return load_base_model(base_folder, device="cpu", dtype="float32")


@pytest.fixture
def random_generator(base: BaseModel) -> Callable[..., AdapterGenerator]:
    """Makes generators whose adapters change what the base model says."""

    def make(**settings: Any) -> AdapterGenerator:
        values = {"state_dim": 7, "rank": 7, "scale": 0.5, **settings}
        return randomize(build_generator(GeneratorConfig(**values), base))

    return make


@pytest.fixture
def records_file(tmp_path: Path) -> Path:
    """Five records of facts with three questions each, in JSON lines."""
    rng = random.Random(1)
    records = [sample_facts_record(rng, num_facts=3) for _ in range(5)]
    lines = [
        {"context": r.context, "qa": [{"question": q.question, "answers": list(q.answers)} for q in r.questions]}
        for r in records
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def write_recipe(tmp_path: Path, base_folder: Path, records_file: Path) -> Callable[..., Path]:
    """Writes a recipe of a quick run over `records_file`, with settings of one's own; gives its path."""

    def write(name: str = "recipe.yaml", **settings: Any) -> Path:
        source = {
            "kind": "questions",
            "paths": [str(records_file)],
            "num_questions": 2,
            "context_tokens": [20, 60],
            "reconstruction": 0.5,
            "held_out_share": 0.0,
        }
        values = {
            "output": str(tmp_path / "run"),
            "base_model": str(base_folder),
            "device": "cpu",
            "dtype": "float32",
            "generator": {"state_dim": 16, "rank": 16, "scale": 0.5},
            "sources": [source, {"kind": "facts", "num_facts": [2, 3], "start_step": 2}],
            "num_steps": 12,
            "contexts_per_step": 3,
            "learning_rate": 0.01,
            "warmup_steps": 3,
            "log_steps": 4,
            "evaluation_steps": 5,
            "evaluation_contexts": 2,
            **settings,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def make_recipe(write_recipe: Callable[..., Path]) -> Callable[..., TrainingRecipe]:
    """The recipe of `write_recipe`, loaded."""
    return lambda **settings: load_recipe(write_recipe(**settings))


@pytest.fixture
def encoder_values() -> dict[str, Any]:
    """Settings of a quick run of a generator with an encoder; a file of tests may change some for its own."""
    return {
        "seed": 3,
        "optimizer": "adamw",
        "attention": "eager",
        "generator": {
            "targets": ["feed_forward_down"],
            "layers": [1, 2],
            "state_dim": 16,
            "rank": 12,
            "scale": 1.0,
            "normalization": "ridge",
            "chunk_tokens": 64,
            "encoder": {
                "states": [1, 2],
                "width": 24,
                "heads": 2,
                "constant_rank": 2,
                "constant_from_layer": 1,
            },
        },
        "prompt": {"question": "Question: {question}\nAnswer:"},
        "sources": [{"kind": "facts", "num_facts": [2, 5], "num_questions": 3, "style": "plain"}],
        "num_steps": 4,
        "warmup_steps": 1,
        "learning_rate": 3e-3,
        "row_tokens": 96,
        "log_steps": 1,
        "evaluation_steps": 0,
        "evaluation_contexts": 3,
        "encoder_training": {
            "passages": 24,
            "lookup_layers": [2],
            "lookup_steps": 4,
            "lookup_questions": 6,
            "group_passages": [2, 9],
            "group_shares": [1, 1],
            "rows": 4,
            "kept_rows": 1,
        },
    }


@pytest.fixture
def recipe_path(encoder_values: dict[str, Any], base_folder: Path, tmp_path: Path) -> Path:
    """A recipe of `encoder_values`."""
    path = tmp_path / "recipe.yaml"
    values = {"base_model": str(base_folder), "output": str(tmp_path / "run"), "device": "cpu", "dtype": "float32"}
    path.write_text(yaml.safe_dump(encoder_values | values))
    return path


@pytest.fixture
def recipe(recipe_path: Path) -> TrainingRecipe:
    """The recipe of `recipe_path`, loaded."""
    return load_recipe(recipe_path)


@pytest.fixture
def generator(recipe: TrainingRecipe, base: BaseModel) -> EncoderGenerator:
    """A random generator of that recipe."""
    torch.manual_seed(1)
    made = build_generator(recipe.generator, base)
    assert isinstance(made, EncoderGenerator)
    return randomize(made)


@pytest.fixture
def states(recipe: TrainingRecipe, base: BaseModel, generator: EncoderGenerator) -> FrozenStates:
    """What the base model makes of that recipe's passages."""
    return prepared_states(recipe, base, generator, Processes("cpu"))


@pytest.fixture
def embeddings(base: BaseModel) -> torch.Tensor:
    """The base model's input embeddings."""
    return base.model.get_input_embeddings().weight.detach()
