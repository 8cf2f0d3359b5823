"""Starts a generator with an encoder from another one: its weights in smaller sizes, and queries of units fitted to it.

Leaves out: what a new generator takes from the base model (`starting`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import load_generator, load_weights
from generative_adapter.errors import CheckpointError
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.surroundings import WEIGHTS as SURROUNDINGS
from generative_adapter.training.encoder.encoding import GroupMemory, group_memories
from generative_adapter.training.encoder.frozen_states import FrozenStates
from generative_adapter.training.encoder.groups import Group
from generative_adapter.training.encoder.lookups import SHARPNESS, lookup_projection
from generative_adapter.training.encoder.surroundings_start import fit_surroundings_queries

logger = logging.getLogger(__name__)

_MEASURED_PASSAGES = 800
_FITTED_PASSAGES = 2500
_GROUP = 8  # passages of a memory
_TYPICAL_TOKENS = 1000  # of a memory
_SIZING_MEMORIES = 60
_QUERY_SIZES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0)
_RIDGE = 0.02  # of the fitted queries, relative to the inputs' size

_Item = TypeVar("_Item")


@torch.no_grad()
def take_over(
    generator: EncoderGenerator,
    path: str | Path,
    base: BaseModel,
    states: FrozenStates,
    embeddings: Tensor,
    row_tokens: int = 128,
) -> None:
    """Copies what a generator file knows into a new generator of the same encoder.

    Targets, constant parts and units that only one of the two has stay as they are new, or are left out; so do further
    layers of the encoder and further ranks of the constant part, which change nothing at first. Wider keys and values
    are narrowed; with new units and inputs of their gates among the states, `fit_unit_queries` follows, with new
    surroundings `fit_surroundings_queries`.

    Args:
        generator: a new one, after `measure_start`.
        path: the file.
        base: the frozen base model.
        states: of the passages.
        embeddings: of the base model, `[words, d_h]`.
        row_tokens: length of a row of questions, where some are asked.

    Raises:
        CheckpointError: when the file's generator is of another form, or narrower.
        FingerprintMismatchError: when it is for another base model.
    """
    other = load_generator(path, base).generator
    if not isinstance(other, EncoderGenerator):
        raise CheckpointError(f"{path}: a generator with an encoder can't start from one without")
    if other.learned_dim < generator.learned_dim or other.value_dim < generator.value_dim:
        raise CheckpointError(
            f"{path}: its keys and values are {other.learned_dim} and {other.value_dim} wide, those of "
            f"the new generator {generator.learned_dim} and {generator.value_dim}, which may only be fewer"
        )
    fixed = generator.state_dim - generator.learned_dim
    if other.surroundings is not None and (other.state_dim, other.value_dim) != (
        generator.state_dim,
        generator.value_dim,
    ):
        raise CheckpointError(
            f"{path}: surroundings can only be taken over as they are, with keys and values as wide as they were "
            f"({other.state_dim - other.learned_dim}, {other.state_dim} and {other.value_dim} numbers); the new "
            f"generator has {fixed}, {generator.state_dim} and {generator.value_dim}"
        )
    tensors = {name: tensor.detach() for name, tensor in other.named_weights().items()}
    if (other.learned_dim, other.value_dim) != (generator.learned_dim, generator.value_dim):
        tensors = _narrowed(tensors, generator, other, states, embeddings)
    is_new = generator.surroundings is not None and other.surroundings is None
    if is_new:
        tensors = {name: _with_fixed_part(name, tensor, fixed) for name, tensor in tensors.items()}
    own = generator.named_weights()
    shared = ("encoder.", "memory.")  # of every generator with an encoder: what differs there is told, not left out
    further = tuple(f"encoder.layers.{at}." for at in range(len(other.encoder.layers), len(generator.encoder.layers)))
    coded = tuple(f"memory.{name}" for name in SURROUNDINGS) if is_new else ()
    new_parts = [name for name in own if not name.startswith(shared) or name.startswith((*further, *coded))]
    fresh = [name for name in new_parts if name not in tensors]
    tensors = {name: _with_further_ranks(name, tensor, own.get(name)) for name, tensor in tensors.items()}
    known = {name: tensor for name, tensor in tensors.items() if name in own or name.startswith(shared)}
    load_weights(generator, known, str(path), may_lack=tuple(fresh))
    logger.info("%d tensors from %s, %d new ones", len(known), path, len(fresh))
    if generator.keeps_tokens and not other.keeps_tokens and _has_gate_inputs(generator, states):
        fit_unit_queries(generator, states, embeddings)
    if is_new:
        fit_surroundings_queries(generator, base, states, embeddings, row_tokens)


def _with_fixed_part(name: str, tensor: Tensor, width: int) -> Tensor:
    """Queries of units with rows of zeros for surroundings."""
    if not name.endswith(".unit_query"):
        return tensor
    return torch.cat([tensor, tensor.new_zeros(width, tensor.shape[1])])


def _with_further_ranks(name: str, tensor: Tensor, own: Tensor | None) -> Tensor:
    """A factor of the constant part, with the rows of a new one of higher rank, or columns of zeros."""
    if own is not None and name.endswith(".constant_down"):
        return torch.cat([tensor, own.detach()[len(tensor) :].to(tensor)])
    if own is not None and name.endswith(".constant_up"):
        further = max(0, own.shape[1] - tensor.shape[1])
        return torch.cat([tensor, tensor.new_zeros(len(tensor), further)], dim=1)
    return tensor


def _narrowed(
    tensors: dict[str, Tensor],
    generator: EncoderGenerator,
    other: EncoderGenerator,
    states: FrozenStates,
    embeddings: Tensor,
) -> dict[str, Tensor]:
    """The tensors of the other generator in the sizes of the new one, with keys that use all of their directions.

    Keys of a trained generator may lie close to one direction, in which no two differ, and use few others. With the
    mean K of k k^T, its eigenvectors V of the largest eigenvalues e, those of the new width, and the mean m of the
    eigenvalues but the first: k -> W k with W = diag(e + m)^-1/2 V^T, again of the length that its gate gives. Queries
    keep what they give on average, k^T (n K + lambda I)^-1 q of a memory of n tokens. With T = P' P^+, P and P' the
    word maps of both: v -> T v and A -> A T^+; the word map itself stays the new one, and so does lambda.
    """
    numbers = _spread([n for n, each in enumerate(states.passages) if not each.held_out], _MEASURED_PASSAGES)
    measured = torch.zeros(other.state_dim, other.state_dim)
    keys: list[Tensor] = []
    for memory in _memories(other, states, embeddings, numbers):
        measured += (memory.keys.mT @ memory.keys).cpu()
        keys.append(memory.keys.cpu())
    count = sum(map(len, keys))
    measured /= count
    eigenvalues, vectors = torch.linalg.eigh(measured)
    eigenvalues = eigenvalues.clamp_min(0)
    floor = eigenvalues[:-1].mean()
    width = generator.learned_dim
    kept, values = vectors[:, -width:].flip(1), eigenvalues[-width:].flip(0)
    spread = (kept * (values + floor).rsqrt()).mT
    lengths = torch.cat([(each @ spread.mT).norm(dim=-1) / each.norm(dim=-1) for each in keys])
    factor = 1 / lengths.mean()  # new keys are about factor * W k
    new_measured = factor**2 * torch.diag(values / (values + floor))
    eye = torch.eye(width)
    typical = _TYPICAL_TOKENS
    answers = torch.linalg.inv(typical * measured + other.ridge_strength.cpu() * torch.eye(other.state_dim))
    back_keys = (kept * (values + floor).sqrt()) / factor  # W^+
    queries = (typical * new_measured + generator.ridge_strength.cpu() * eye) @ back_keys.mT @ answers
    spread, queries = spread.to(generator.key_proj), queries.to(generator.key_proj)
    logger.info(
        "keys of %d of %d dimensions: %.1f %% of what they vary in; their first direction had %.0f %% of all",
        width,
        other.state_dim,
        100 * values[1:].sum() / eigenvalues[:-1].sum(),
        100 * eigenvalues[-1] / eigenvalues.sum(),
    )
    words = generator.word_proj @ torch.linalg.pinv(other.word_proj)
    back = torch.linalg.pinv(words)
    found = {}
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        if kind == "key_proj":  # only its direction counts: at the size of a new one steps are as long
            own = spread @ tensor
            found[name] = own * (tensor.shape[1] ** -0.5 / own.square().mean().sqrt())
        elif kind in ("query_proj", "unit_query"):
            found[name] = queries @ tensor
        elif name == "memory.value_proj":
            found[name] = words @ tensor
        elif kind in ("output_proj", "unit_output"):
            found[name] = tensor @ back
        elif name.startswith("memory.word_") or kind == "log_ridge":
            found[name] = getattr(generator, kind).detach()
        else:
            found[name] = tensor
    return found


@dataclass(frozen=True)
class _Lookups:
    """Lookups in one memory.

    Attributes:
        memory: of some passages.
        inputs: of all gates side by side, `[asked, d_h of all]`.
        right: the tokens that each is to find, `[asked, tokens]`.
    """

    memory: GroupMemory
    inputs: Tensor
    right: Tensor

    @property
    def keys(self) -> Tensor:
        """Mean key of the right tokens, `[asked, d_r]`."""
        right = self.right.to(self.memory.keys)
        return (right @ self.memory.keys) / right.sum(-1, keepdim=True)


def fit_unit_queries(generator: EncoderGenerator, states: FrozenStates, embeddings: Tensor) -> None:
    """Sets every block's unit queries so that Q x is about the key of the token that an answer's token is read from.

    Ridge regression over questions of the training passages, from inputs of the gates under the plain base model to
    the mean key of the right tokens; then made as large as finds these best, by the loss of `lookups`.

    Args:
        generator: with units; its keys are to stay about what they are.
        states: hold the inputs of the gates.
        embeddings: of the base model, `[words, d_h]`.
    """
    lookups = list(_training_lookups(generator, states, embeddings))
    inputs = torch.cat([each.inputs for each in lookups])
    wanted = torch.cat([each.keys for each in lookups])
    blocks = generator.unit_blocks
    parts = inputs.split([block.gate.in_features for block in blocks], dim=1)
    for block, own in zip(blocks, parts, strict=True):
        scaled = own * block.input_scales
        ridge = _RIDGE * len(scaled) * torch.eye(scaled.shape[1], device=scaled.device)
        query = torch.linalg.solve(scaled.mT @ scaled + ridge, scaled.mT @ wanted).mT
        block.query_proj.copy_(query)
        explained = 1 - (wanted - scaled @ query.mT).square().sum() / (wanted - wanted.mean(0)).square().sum()
        logger.info("queries of %s: R^2 %.2f", block.gate.name, explained)
    projection = lookup_projection(generator, [block.gate for block in blocks])
    losses = torch.zeros(len(_QUERY_SIZES))
    for each in lookups[:: max(1, len(lookups) // _SIZING_MEMORIES)]:
        weights = (each.inputs @ projection.mT @ each.memory.inverse) @ each.memory.keys.mT
        for at, size in enumerate(_QUERY_SIZES):
            scores = SHARPNESS * size * weights
            missed = scores.logsumexp(-1) - scores.masked_fill(~each.right, -torch.inf).logsumexp(-1)
            losses[at] += missed.sum().cpu()
    best = _QUERY_SIZES[int(losses.argmin())]
    logger.info("queries are made %g times as large", best)
    for block in blocks:
        block.query_proj.mul_(best)


def _training_lookups(generator: EncoderGenerator, states: FrozenStates, embeddings: Tensor) -> Iterator[_Lookups]:
    """Lookups of questions about training passages, evenly spread, eight passages a memory."""
    train = [number for number, each in enumerate(states.passages) if not each.held_out]
    by_passage: dict[int, list[tuple[Tensor, tuple[int, ...]]]] = {}
    for number in _spread(train, _FITTED_PASSAGES):
        for each in states.asked[number]:
            question = states.passages[number].questions[each.number]
            for inputs, found in zip(states.lookup_inputs(each), question.found, strict=False):
                if found:
                    by_passage.setdefault(number, []).append((inputs, found))
    for memory in _memories(generator, states, embeddings, list(by_passage)):
        rows = [
            (inputs, [first + at for at in found])
            for n, first in memory.firsts.items()
            for inputs, found in by_passage[n]
        ]
        right = torch.zeros(len(rows), len(memory.keys), dtype=torch.bool, device=memory.keys.device)
        for row, (_, places) in enumerate(rows):
            right[row, places] = True
        yield _Lookups(memory, torch.stack([inputs for inputs, _ in rows]).to(memory.keys), right)


def _has_gate_inputs(generator: EncoderGenerator, states: FrozenStates) -> bool:
    return tuple(block.gate for block in generator.unit_blocks) == states.targets


def _memories(
    generator: EncoderGenerator, states: FrozenStates, embeddings: Tensor, numbers: Sequence[int]
) -> Iterator[GroupMemory]:
    """The memories of each eight of the passages."""
    for at in range(0, len(numbers), _GROUP):
        yield group_memories(generator, states, embeddings, [Group(tuple(numbers[at : at + _GROUP]), ())])[0]


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many of the items, evenly spread."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])
