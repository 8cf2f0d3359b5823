"""The shipped generator, memories of eight texts, twenty questions and our answers, for the tests of all engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine_setup import MAX_TOKENS, QUESTIONS, TEXTS, Prompt
from generative_adapter import ContextMemory, GenerativeAdapter
from generative_adapter.base_model.decoding import greedy_answers
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.prompts import end_ids, question_ids
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.config import EncoderConfig, GeneratorConfig, PromptConfig
from generative_adapter.export.base_folder import save_base_model
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.low_rank import LowRankAdapter


@pytest.fixture(scope="session")
def model() -> GenerativeAdapter:
    return GenerativeAdapter.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def memories(model: GenerativeAdapter) -> list[ContextMemory]:
    return [model.contextualize(text) for text in TEXTS]


@pytest.fixture(scope="session")
def prompts(model: GenerativeAdapter, memories: list[ContextMemory]) -> list[Prompt]:
    questions = [question for _, question in QUESTIONS]
    owners = [memories[number] for number, _ in QUESTIONS]
    answers = model.answer(questions, owners, max_new_tokens=MAX_TOKENS)
    closed_book = model.answer(questions, max_new_tokens=MAX_TOKENS)
    assert sum(one.text != other.text for one, other in zip(answers, closed_book, strict=True)) > 10
    prompt, tokenizer = model.checkpoint.prompt, model.base.tokenizer
    return [
        Prompt(number, question_ids(tokenizer, prompt, question), answer.text)
        for (number, question), answer in zip(QUESTIONS, answers, strict=True)
    ]


@pytest.fixture(scope="session")
def unit_adapters(model: GenerativeAdapter) -> list[LowRankAdapter]:
    """Adapters of two texts by a random generator whose feed-forward units take tokens: gate, up and down change."""
    encoder = EncoderConfig(
        states=(2, 4), width=48, heads=4, constant_rank=4, constant_from_layer=26, unit_layers=(27, 28)
    )
    config = GeneratorConfig(
        targets=("feed_forward_down",),
        layers=(20,),
        state_dim=24,
        rank=16,
        scale=1.0,
        normalization="ridge",
        encoder=encoder,
    )
    torch.manual_seed(4)
    generator = build_generator(config, model.base)
    assert isinstance(generator, EncoderGenerator)
    with torch.no_grad():
        for block in generator.unit_blocks:
            block.output_proj.normal_(0, 0.6)
            block.gate_offset.normal_(0, 0.05)
            block.set_activity(torch.rand(block.num_units))
    made = GeneratorCheckpoint(generator.eval(), config, PromptConfig(), model.base.name, model.base.fingerprint, {})
    other = GenerativeAdapter(model.base, made)
    return [other.adapter(other.contextualize(text)) for text in TEXTS[:2]]


@pytest.fixture(scope="session")
def unit_prompts(model: GenerativeAdapter, unit_adapters: list[LowRankAdapter], prompts: list[Prompt]) -> list[Prompt]:
    """Eight prompts with our answers under these adapters."""
    found = []
    for number, prompt in enumerate(prompts[:8]):
        with inject(model.base.model, unit_adapters[number % 2]):
            told = greedy_answers(
                model.base, [prompt.ids], MAX_TOKENS, end_ids(model.base.tokenizer, model.checkpoint.prompt)
            )
        found.append(Prompt(number % 2, prompt.ids, told[0].text))
    plain = greedy_answers(
        model.base, [prompt.ids for prompt in found], MAX_TOKENS, end_ids(model.base.tokenizer, model.checkpoint.prompt)
    )
    assert sum(one.text != prompt.answer for one, prompt in zip(plain, found, strict=True)) > 4
    return found


@pytest.fixture(scope="session")
def end(model: GenerativeAdapter) -> list[int]:
    return end_ids(model.base.tokenizer, model.checkpoint.prompt)


@pytest.fixture(scope="session")
def base_folder(model: GenerativeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "base"
    save_base_model(model.base, folder, dtype="fp32")
    return folder
