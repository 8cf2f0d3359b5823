"""Block inputs of a forward pass: the hidden states H that a generator reads.

Leaves out: what is done with them. Hooks are always removed, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from generative_adapter.base_model.targets import find_blocks
from generative_adapter.errors import BaseModelError


@contextmanager
def on_block_inputs(model: nn.Module, layers: Iterable[int], callback: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While open, calls `callback(layer, hidden)` before block `layer` runs, with its input `[batch, tokens, d_h]`.

    Eq. (1): the hidden states that enter block l, H^(l-1), make the adapter of block l.
    """
    _, blocks = find_blocks(model)

    def make(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(hidden, Tensor):
                raise BaseModelError(
                    f"block {layer} ({type(module).__name__}) was called without its hidden states first or as "
                    f"hidden_states=; got {len(args)} positional arguments and {sorted(kwargs)}"
                )
            callback(layer, hidden)

        return hook

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_pre_hook(make(layer), with_kwargs=True).remove)
        yield


@torch.no_grad()
def capture_block_inputs(
    model: nn.Module, layers: Iterable[int], input_ids: Tensor, mask: Tensor | None = None
) -> dict[int, Tensor]:
    """Block inputs of one pass over a chunk: block index -> H, `[batch, tokens, d_h]`.

    Neither the blocks above the last one wanted nor the language-model head are run. Adapters that are injected at the
    time take part.

    Args:
        model: the base model.
        layers: blocks whose inputs are wanted.
        input_ids: `[batch, tokens]`.
        mask: True for real tokens, `[batch, tokens]`, padding on the right.
    """
    captured: dict[int, Tensor] = {}
    decoder = getattr(model, "base_model", model)
    wanted = sorted(set(layers))

    def take(layer: int, hidden: Tensor) -> None:
        captured[layer] = hidden
        if layer == wanted[-1]:
            raise _AllSeen

    with on_block_inputs(model, wanted, take), suppress(_AllSeen):
        attention_mask = None if mask is None else mask.long()
        decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return captured


class _AllSeen(Exception):
    """Ends a forward pass whose remaining blocks nobody looks at."""
