"""Whitening matrices of what the projections of a generator read, measured on the plain base model.

Hidden states have a few huge directions (those of a text's first token) and many small ones. A step that moves a
projection alike in all of them changes its outputs by the huge ones alone; taken in whitened coordinates it changes
them evenly (the input side of K-FAC). Leaves out: the steps themselves (`optimizers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import read_first_chunks, run_blocks
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.unit_rms import unit_rms
from generative_adapter.training.batches import Batch

DAMPING = 1.0  # times the median second moment
_ANYWHERE = 0.1  # weight of tokens that predict no answer, the first of a text among them


@torch.no_grad()
def measure_whiteners(base: BaseModel, generator: AdapterGenerator, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """(C + damping)^(-1/2) for every projection that reads hidden states or a target's input.

    C is the second moment of a projection's input: of the context's tokens for what writes (each scaled to a root mean
    square of one, where the generator's norm does so), of the supervised tokens and, with little weight, all others for
    `query_proj`. What the generator itself would change of them is left out.

    Args:
        base: the frozen base model.
        generator: says which inputs are read.
        batches: contexts and questions to measure on.

    Returns:
        Parameter name in `generator.named_parameters()` -> symmetric matrix, `[d, d]`, d the parameter's last size.
    """
    blocks: dict[int, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    weight = 0
    normed = generator[generator.targets[0].name].norm_weight is not None
    for batch in batches:
        for ids, segments in batch.first:
            read = read_first_chunks(
                base.model,
                generator.layers,
                ids.to(base.device),
                segments.to(base.device),
                batch.rows.num_start_tokens,
            )
            for layer, hidden in read.hidden.items():
                tokens = hidden[read.mask].float()
                tokens = unit_rms(tokens) if normed else tokens
                blocks[layer] = blocks.get(layer, 0) + tokens.mT @ tokens
        weight += _add_inputs(base, generator, batch, inputs)
    if not weight:
        return {}
    roots = {layer: _inverse_root(moment) for layer, moment in blocks.items()}
    whiteners: dict[str, Tensor] = {}
    for index, target in enumerate(generator.targets):
        for name, parameter in generator[target.name].named_parameters():
            own = f"generators.{index}.{name}"
            if name == "query_proj":
                whiteners[own] = _inverse_root(inputs[target.name])
            elif name == "value_proj" and generator.value_layer is not None:
                whiteners[own] = roots[generator.value_layer]
            elif parameter.ndim > 1 and name != "output_proj":
                whiteners[own] = roots[target.layer]
    return whiteners


def _add_inputs(base: BaseModel, generator: AdapterGenerator, batch: Batch, inputs: dict[str, Tensor]) -> int:
    """Adds the second moments of the targets' inputs in the rows with questions; returns how many tokens count."""
    rows = batch.rows
    segments, supervised = rows.segments.to(base.device), rows.supervised.to(base.device)
    share = torch.where(supervised, 1.0, _ANYWHERE * supervised.sum() / (segments > 0).sum())[segments > 0].sqrt()

    def keeper(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            tokens = args[0][segments > 0].float() * share.unsqueeze(1)
            inputs[name] = inputs.get(name, 0) + tokens.mT @ tokens

        return keep

    with ExitStack() as stack:
        for target in generator.targets:
            handle = find_linear(base.model, target.name).register_forward_pre_hook(keeper(target.name))
            stack.callback(handle.remove)
        run_blocks(base.model, rows.input_ids.to(base.device), segments)
    return int(supervised.sum())


def _inverse_root(moment: Tensor) -> Tensor:
    """(C + damping * median eigenvalue * I)^(-1/2), scaled to eigenvalues of mean square one: C's size is no matter."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(0)
    root = (values + DAMPING * values.median().clamp_min(1e-12 * values.max())).rsqrt()
    root = root / root.square().mean().sqrt()
    return ((vectors * root) @ vectors.mT).float()
