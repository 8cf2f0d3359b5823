"""Gradient checkpointing of a base model whose hooks are only there during the forward pass.

A block keeps its inputs instead of all it computes on the way, and the backward pass runs it again. The model's own
switch does not serve here: it wants training mode, with dropout, and the backward would run blocks without the hooks
that a pass put on them. Leaves out: what is put on (`prefix_pass`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from generative_adapter.base_model.targets import find_blocks


@contextmanager
def recompute_blocks(model: nn.Module, again: Callable[[int], AbstractContextManager[Any]]) -> Iterator[None]:
    """While open, Transformer blocks keep only their inputs for the backward pass, which then runs them once more.

    The hooks on a block itself run in the forward pass only; those inside of it run both times, if they are there.

    Args:
        model: the base model; nothing in it may be random, such as dropout in training mode.
        again: makes the context in which block `layer` runs once more: hooks that are gone by then, and settings.
    """
    _, blocks = find_blocks(model)

    def make(layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            num_runs = 0

            def run(*args: Any) -> Any:
                nonlocal num_runs
                num_runs += 1
                with nullcontext() if num_runs == 1 else again(layer):
                    return forward(*args, **kwargs)

            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

        return checkpointed

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(_restore, block, dict(block.__dict__))
            block.forward = make(layer, block.forward)
        yield


def _restore(block: nn.Module, before: dict[str, Any]) -> None:
    """Gives a block the `forward` it had, its class's or (of a wrapper such as Accelerate's) its own."""
    if "forward" in before:
        block.forward = before["forward"]
    else:
        del block.forward
