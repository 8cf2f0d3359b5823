"""The shipped generator, memories of eight texts, twenty questions and our answers, for the tests of all engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_setup import MAX_TOKENS, QUESTIONS, TEXTS, Prompt
from generative_adapter import ContextMemory, GenerativeAdapter
from generative_adapter.base_model.prompts import end_ids, question_ids
from generative_adapter.export.base_folder import save_base_model


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
def end(model: GenerativeAdapter) -> list[int]:
    return end_ids(model.base.tokenizer, model.checkpoint.prompt)


@pytest.fixture(scope="session")
def base_folder(model: GenerativeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "base"
    save_base_model(model.base, folder, dtype="fp32")
    return folder
