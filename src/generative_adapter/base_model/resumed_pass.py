"""A forward pass that starts in the middle: block inputs that were computed before go into a block, the rest runs.

Rows hold several segments, as those of `prefix_pass`. Leaves out: what is added to the outputs on the way
(`inject.add_to_outputs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from generative_adapter.base_model.lean_norms import lean_norms
from generative_adapter.base_model.prefix_pass import attention_mask, head_at, segment_positions
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.errors import BaseModelError

_POSITIONS = 64


def resumed_logits(
    model: nn.Module,
    start_block: int,
    hidden: Tensor,
    segments: Tensor,
    supervised: Tensor,
    norms: list[nn.Module] | None = None,
) -> Tensor:
    """Next-token logits at the supervised positions, row-major, `[supervised, vocabulary]`.

    Args:
        model: a causal language model.
        start_block: the first block that runs.
        hidden: its inputs, `[rows, tokens, d_h]`; zeros for padding.
        segments: 1, 2, ... for the segment a token belongs to, 0 for padding on the right, `[rows, tokens]`.
        supervised: positions whose logits are wanted, `[rows, tokens]`, bool.
        norms: of the model, that may run leanly (`find_plain_norms`).
    """
    with _resumed(model, start_block, hidden), head_at(model, _filled_up(supervised)), lean_norms(norms or []):
        output: Any = model(
            input_ids=segments.clamp_max(0),
            attention_mask=attention_mask(model, segments),
            position_ids=segment_positions(segments),
            use_cache=False,
        )
    return output.logits[supervised[_filled_up(supervised)]]


def _filled_up(supervised: Tensor) -> Tensor:
    """The positions with others after them, up to a multiple of 64: products of ever new shapes are slow on a CPU."""
    missing = -int(supervised.sum()) % _POSITIONS
    if not missing:
        return supervised
    filled = supervised.flatten().clone()
    filled[(~filled).nonzero()[:missing, 0]] = True
    return filled.view_as(supervised)


@contextmanager
def _resumed(model: nn.Module, start_block: int, hidden: Tensor) -> Iterator[None]:
    """While open, the blocks below `start_block` do nothing, and that one gets `hidden` instead of its input."""
    _, blocks = find_blocks(model)

    def replaced(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    with ExitStack() as stack:
        for block in list(blocks)[:start_block]:
            if "forward" in block.__dict__:
                raise BaseModelError(f"{type(block).__name__} is wrapped already; a pass can't start behind it")
            stack.callback(block.__dict__.pop, "forward", None)
            block.forward = _passed_on
        handle = blocks[start_block].register_forward_pre_hook(replaced, with_kwargs=True)
        stack.callback(handle.remove)
        yield


def _passed_on(hidden_states: Tensor, *_args: object, **_settings: object) -> Tensor:
    return hidden_states
