"""Fixtures that most tests share; the models themselves are made in `tiny_models`."""

from __future__ import annotations

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.contextualizer import GenerativeAdapter
from tiny_models import FAMILIES, tiny_base, tiny_checkpoint


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Name of each architecture family in turn."""
    return request.param


@pytest.fixture(scope="session")
def family_base(family: str) -> BaseModel:
    """A tiny random model of each family in turn, in float32; not to be changed."""
    return tiny_base(family)


@pytest.fixture(scope="session")
def tiny_llama_base() -> BaseModel:
    """A tiny random Llama, in float32; not to be changed."""
    return tiny_base("llama")


@pytest.fixture(scope="session")
def tiny_llama_checkpoint(tiny_llama_base: BaseModel) -> GeneratorCheckpoint:
    """A generator with random weights for `tiny_llama_base`; not to be changed."""
    return tiny_checkpoint(tiny_llama_base)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama_base: BaseModel, tiny_llama_checkpoint: GeneratorCheckpoint) -> GenerativeAdapter:
    """`tiny_llama_base` with its generator."""
    return GenerativeAdapter(tiny_llama_base, tiny_llama_checkpoint)
