"""`generate` of transformers under adapters, one for all rows or one a row, with all of its settings.

Leaves out: wording questions and cutting answers (`contextualizer`), and keeping adapters on the model between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from generative_adapter.base_model.inject import inject
from generative_adapter.errors import AdapterError
from generative_adapter.generator.low_rank import LowRankAdapter


def generate(
    model: Any, input_ids: Tensor, adapters: LowRankAdapter | Sequence[LowRankAdapter | None], **settings: Any
) -> Any:
    """What `model.generate(input_ids, **settings)` gives while the model runs under adapters; it is left unchanged.

    Args:
        model: a causal language model of transformers.
        input_ids: prompts, `[rows, tokens]`.
        adapters: one for all rows, or one a row; None leaves a row at the plain model.
        settings: of `generate`, such as `max_new_tokens`, `num_beams` or `do_sample`.

    Returns:
        What `generate` returns: `[rows * num_return_sequences, tokens]`, prompts included, unless told otherwise.

    Raises:
        AdapterError: when there are not as many adapters as rows, or one doesn't fit the model.
    """
    if isinstance(adapters, LowRankAdapter):
        with inject(model, adapters):
            return model.generate(input_ids, **settings)
    if len(adapters) != len(input_ids):
        raise AdapterError(f"{len(input_ids)} prompts need one adapter for all or one each, got {len(adapters)}")
    copies = _rows_of_a_prompt(model, settings)
    with inject(model, [adapter for adapter in adapters for _ in range(copies)]):
        return model.generate(input_ids, **settings)


def _rows_of_a_prompt(model: Any, settings: dict[str, Any]) -> int:
    """How many rows `generate` runs for every prompt: its beams, or the samples of it."""
    config = settings.get("generation_config") or model.generation_config

    def value(name: str) -> int:
        return settings.get(name) or getattr(config, name, None) or 1

    return max(value("num_beams"), value("num_return_sequences"))
