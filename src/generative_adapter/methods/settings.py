"""What methods are built from, beside the base model: one set of settings, of which each method takes what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from generative_adapter.config import require, require_memory_dtype
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.prompting import RESERVE_TOKENS
from generative_adapter.methods.protocol import Wording

Pair = tuple[str, str]


@dataclass(frozen=True)
class MethodSettings:
    """Settings of all methods.

    Attributes:
        wording: of the task; methods that train or read a context before its queries put theirs in it.
        batching: how many queries run together.
        max_prompt_tokens: see `full_context`.
        reserve_tokens: see `full_context`.
        generator: file of a generator; None: the shipped one.
        any_base: take a generator of another base model of the same shapes.
        task_wording: put a generator's queries in the task's wording rather than in its own.
        memory_dtype: form in which a generator's memories are stored before adapters are made of them, one of
            `config.MEMORY_DTYPES`; None: adapters are made at once, of what was read.
        training_pairs: (question, answer) of training contexts, for supervised fine-tuning.
        validation_pairs: the same of other contexts, for early stopping.
        learning_rates: of fine-tuning, by method name; others have their own.
        max_epochs: of fine-tuning on pairs, documents or examples, by method name; others have their own.
        batch_sizes: of fine-tuning, by method name; others have their own.
        lora_rank: r of fine-tuned LoRA.
        seed: of fine-tuning.
        kept_fits: folder where weights fine-tuned on pairs are kept, and taken from again; None: nowhere.
        progress: of fine-tuning, called with epochs done and epochs at most.
    """

    wording: Wording
    batching: Batching = field(default_factory=Batching)
    max_prompt_tokens: int | None = None
    reserve_tokens: int = RESERVE_TOKENS
    generator: str | Path | None = None
    any_base: bool = False
    task_wording: bool = False
    memory_dtype: str | None = None
    training_pairs: tuple[Pair, ...] = ()
    validation_pairs: tuple[Pair, ...] = ()
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    max_epochs: Mapping[str, int] = field(default_factory=dict)
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    lora_rank: int = 16
    seed: int = 0
    kept_fits: Path | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.memory_dtype is not None:
            require_memory_dtype(self.memory_dtype)
        require(self.lora_rank > 0, f"lora_rank must be positive, got {self.lora_rank}")
