"""Generative Adapter: context in, weights out.

A text becomes a low-rank adapter of a frozen language model in one forward pass (arXiv:2411.05877):

    from generative_adapter import GenerativeAdapter

    model = GenerativeAdapter.from_pretrained()
    memory = model.contextualize("The visitor badges at Kestrel Point are lilac.")
    print(model.generate("What colour are the visitor badges at Kestrel Point?", memory))

Everything public is named below; torch and transformers are imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "GenerativeAdapter": "contextualizer",
    "Answer": "base_model.decoding",
    "ContextMemory": "generator.memory",
    "DocumentEntry": "generator.memory",
    "LowRankAdapter": "generator.low_rank",
    "LowRankFactors": "generator.low_rank",
    "AdapterGenerator": "generator.generator",
    "EncoderGenerator": "generator.encoder_generator",
    "BaseModel": "base_model.loading",
    "load_base_model": "base_model.loading",
    "generate": "base_model.generation",
    "inject": "base_model.inject",
    "merge": "base_model.inject",
    "GeneratorCheckpoint": "checkpoint",
    "load_generator": "checkpoint",
    "save_generator": "checkpoint",
    "GeneratorConfig": "config",
    "EncoderConfig": "config",
    "PromptConfig": "config",
    "PeftExport": "export.peft",
    "load_peft": "export.peft",
    "save_peft": "export.peft",
    "save_base_model": "export.base_folder",
    "save_merged": "export.base_folder",
    "save_gguf": "export.gguf",
    "load_gguf": "export.gguf",
    "MemoryStore": "export.memory_store",
    "save_generator_folder": "export.hub",
    "push_generator": "export.hub",
    "push_adapter": "export.hub",
    "run_training": "training.run",
}

__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from generative_adapter.base_model.decoding import Answer as Answer
    from generative_adapter.base_model.generation import generate as generate
    from generative_adapter.base_model.inject import inject as inject
    from generative_adapter.base_model.inject import merge as merge
    from generative_adapter.base_model.loading import BaseModel as BaseModel
    from generative_adapter.base_model.loading import load_base_model as load_base_model
    from generative_adapter.checkpoint import GeneratorCheckpoint as GeneratorCheckpoint
    from generative_adapter.checkpoint import load_generator as load_generator
    from generative_adapter.checkpoint import save_generator as save_generator
    from generative_adapter.config import EncoderConfig as EncoderConfig
    from generative_adapter.config import GeneratorConfig as GeneratorConfig
    from generative_adapter.config import PromptConfig as PromptConfig
    from generative_adapter.contextualizer import GenerativeAdapter as GenerativeAdapter
    from generative_adapter.export.base_folder import save_base_model as save_base_model
    from generative_adapter.export.base_folder import save_merged as save_merged
    from generative_adapter.export.gguf import load_gguf as load_gguf
    from generative_adapter.export.gguf import save_gguf as save_gguf
    from generative_adapter.export.hub import push_adapter as push_adapter
    from generative_adapter.export.hub import push_generator as push_generator
    from generative_adapter.export.hub import save_generator_folder as save_generator_folder
    from generative_adapter.export.memory_store import MemoryStore as MemoryStore
    from generative_adapter.export.peft import PeftExport as PeftExport
    from generative_adapter.export.peft import load_peft as load_peft
    from generative_adapter.export.peft import save_peft as save_peft
    from generative_adapter.generator.encoder_generator import EncoderGenerator as EncoderGenerator
    from generative_adapter.generator.generator import AdapterGenerator as AdapterGenerator
    from generative_adapter.generator.low_rank import LowRankAdapter as LowRankAdapter
    from generative_adapter.generator.low_rank import LowRankFactors as LowRankFactors
    from generative_adapter.generator.memory import ContextMemory as ContextMemory
    from generative_adapter.generator.memory import DocumentEntry as DocumentEntry
    from generative_adapter.training.run import run_training as run_training


def __getattr__(name: str) -> Any:
    """A public name, imported from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
