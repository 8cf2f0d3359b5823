"""A tiny model with a generator with an encoder, and a memory of one sentence."""

from __future__ import annotations

import pytest

from generative_adapter import ContextMemory, GenerativeAdapter
from generative_adapter.base_model.loading import BaseModel
from tiny_models import tiny_checkpoint, tiny_encoder_config


@pytest.fixture
def model(tiny_llama_base: BaseModel) -> GenerativeAdapter:
    """`tiny_llama_base` with a random generator; a file of tests may mean something else by this name."""
    return GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, tiny_encoder_config()))


@pytest.fixture
def memory(model: GenerativeAdapter) -> ContextMemory:
    """Of a text named ann.txt."""
    return model.contextualize("Ann lives in Bonn.", name="ann.txt")
