"""One differentiable forward pass in which rows write memories and read the adapters of context prefixes.

The paper's parallel training pass (appendix B): all chunks of all contexts run side by side, block by block. Before
block l runs, the chunks' inputs to it are projected and summed into one state per prefix S_t (eq. 3), all states are
normalised once (eq. 6), and inside the block each row runs under the prefix it reads. Chunk t's input to block l
depends only on prefixes up to t - 1 in the blocks below, so this equals reading the chunks one after another.

A context's first chunk reads nothing: it sees the plain base model, and runs without gradients beforehand
(`capture_block_inputs`). Leaves out: which rows there are (`training.batches`) and the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from generative_adapter.base_model.capture import on_block_inputs
from generative_adapter.base_model.checkpointing import recompute_blocks
from generative_adapter.base_model.grouped_attention import GROUPED, register_grouped_attention
from generative_adapter.base_model.inject import add_to_outputs
from generative_adapter.base_model.lean_norms import find_plain_norms, lean_norms
from generative_adapter.errors import BaseModelError
from generative_adapter.generator.generator import GENERATOR_LABEL, AdapterGenerator
from generative_adapter.generator.normalization import ridge_inverse


@dataclass(frozen=True)
class FirstChunks:
    """Chunks that were read by the plain base model, as captured.

    Attributes:
        hidden: block index -> block inputs of the tokens to write, `[chunks, tokens, d_h]`, without gradients.
        mask: True for real tokens, `[chunks, tokens]`, padding on the right.
    """

    hidden: dict[int, Tensor]
    mask: Tensor


def run_blocks(model: nn.Module, input_ids: Tensor, segments: Tensor) -> None:
    """Runs a model for what its hooks see, without words: the head gets no position.

    The whole model is called, not its decoder, since a sharded one gathers its weights from the outside in.

    Args:
        model: a causal language model.
        input_ids: `[rows, tokens]`.
        segments: 1, 2, ... for the segment that a token belongs to, 0 for padding, `[rows, tokens]`.
    """
    with head_at(model, torch.zeros_like(segments, dtype=torch.bool)):
        model(
            input_ids=input_ids,
            attention_mask=attention_mask(model, segments),
            position_ids=segment_positions(segments),
            use_cache=False,
        )


@torch.no_grad()
def read_first_chunks(
    model: nn.Module, layers: Sequence[int], input_ids: Tensor, segments: Tensor, num_start_tokens: int = 0
) -> FirstChunks:
    """Block inputs of chunks under the plain base model; several chunks may share a row.

    Args:
        model: the base model.
        layers: blocks whose inputs are wanted.
        input_ids: `[rows, tokens]`.
        segments: 1, 2, ... for the chunk of its row that a token belongs to, 0 for padding on the right,
            `[rows, tokens]`. The chunks come back row by row.
        num_start_tokens: begin-of-sequence tokens at the start of a chunk, which are not written.
    """
    captured: dict[int, Tensor] = {}
    with on_block_inputs(model, layers, captured.__setitem__):
        run_blocks(model, input_ids, segments)
    positions = segment_positions(segments)
    starts = ((positions == 0) & (segments > 0)).nonzero()
    lengths = torch.stack([(segments[row] == segments[row, at]).sum() for row, at in starts.tolist()])
    offsets = torch.arange(num_start_tokens, int(lengths.max()), device=segments.device)
    mask = offsets < lengths.unsqueeze(1)
    columns = (starts[:, 1:] + offsets).clamp_max(segments.shape[1] - 1)
    rows = starts[:, :1]
    return FirstChunks({layer: hidden[rows, columns] for layer, hidden in captured.items()}, mask)


@dataclass(frozen=True)
class Lookups:
    """Reads whose weights over the tokens of a context are wanted.

    Attributes:
        labels: numbers of the supervised positions that read, `[lookups]`.
        chunks: number of the first chunk that each looks into, `[lookups]`.
    """

    labels: Tensor
    chunks: Tensor


@dataclass(frozen=True)
class PassRows:
    """The rows of one pass; a row holds one chunk, or several segments packed behind one another.

    Attributes:
        input_ids: `[rows, tokens]`.
        segments: 1, 2, ... for the segment a token belongs to, 0 for padding (on the right), `[rows, tokens]`. Tokens
            attend within their segment only, and positions restart with it.
        reads: index of the prefix whose adapter a row runs under; -1: the plain base model, `[rows]`.
        writers: rows whose whole text is a chunk that is written to memory, `[written]`.
        supervised: positions whose next-token logits are wanted, `[rows, tokens]`, bool.
        num_start_tokens: begin-of-sequence tokens at the start of a chunk, which are not written.
    """

    input_ids: Tensor
    segments: Tensor
    reads: Tensor
    writers: Tensor
    supervised: Tensor
    num_start_tokens: int = 0


def prefix_logits(
    model: nn.Module,
    generator: AdapterGenerator,
    first_chunks: Sequence[FirstChunks],
    rows: PassRows,
    membership: Tensor,
    lookups: Lookups | None = None,
    checkpointing: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Next-token logits at the supervised positions, in row-major order: `[num_supervised, vocabulary]`.

    With `lookups` also the weights with which the reads look up context tokens, `[targets, lookups, tokens]`: a ridge
    read is W q = sum_j v_j (k_j^T (C + lambda I)^-1 q), and the bracket is the weight of token j.

    Args:
        model: the frozen base model.
        generator: gets gradients.
        first_chunks: captured first chunks, in groups; followed by the writers of `rows` they are the written chunks.
        rows: the rows to run.
        membership: 1 where a written chunk is part of a prefix, `[prefixes, written chunks]`; S = membership @
            increments is the sum of eq. (3) for all prefixes at once.
        lookups: reads whose weights are wanted; takes `ridge` and contexts of one chunk.
        checkpointing: blocks keep only their inputs for the backward pass, which runs them once more, with the same
            normalised states and the attention kernel that is in force now. Nothing is written or normalised again.
    """
    by_layer: dict[int, list[str]] = {}
    for target in generator.targets:
        by_layer.setdefault(target.layer, []).append(target.name)
    writer_mask = rows.segments[rows.writers, rows.num_start_tokens :] > 0
    dtype = next(model.parameters()).dtype
    read_index = torch.where(rows.reads < 0, membership.shape[0], rows.reads)
    plain = bool((rows.reads < 0).any())

    def prepare(polar: Tensor) -> Tensor:
        polar = polar.to(dtype)
        return torch.cat([polar, polar.new_zeros(1, *polar.shape[1:])]) if plain else polar

    first: dict[str, Tensor] = {}
    first_keys: dict[str, list[Tensor]] = {}
    normalized: dict[str, Tensor] = {}
    with record_function(GENERATOR_LABEL):
        for target in generator.targets:
            each = generator[target.name]
            pairs = [
                each.keys_and_values(group.hidden[target.layer], group.mask, generator.value_hidden(group.hidden))
                for group in first_chunks
            ]
            first[target.name] = torch.cat([each.pair(keys, values) for keys, values in pairs])
            first_keys[target.name] = [keys for keys, _ in pairs]
        if not len(rows.writers):  # everything is known beforehand: one normalisation for all targets
            states = torch.einsum("pw,twij->tpij", membership, torch.stack(list(first.values())))
            normalized = {name: prepare(polar) for name, polar in zip(first, generator.normalize(states), strict=True)}

    later_chunks: dict[int, Tensor] = {}

    def take_in(layer: int, hidden: Tensor) -> None:
        if not len(rows.writers):
            return
        written = later_chunks[layer] = hidden[rows.writers, rows.num_start_tokens :]
        with record_function(GENERATOR_LABEL):
            for name in by_layer.get(layer, []):
                increment = generator[name].write(written, writer_mask, generator.value_hidden(later_chunks))
                increments = torch.cat([first[name], increment])
                states = torch.einsum("pw,wij->pij", membership, increments)
                normalized[name] = prepare(generator[name].normalize(states))

    queries: dict[str, Tensor] = {}

    def make_update(name: str) -> Callable[[Tensor], Tensor]:
        def update(inputs: Tensor) -> Tensor:
            if lookups is not None:
                wanted = inputs[rows.supervised][lookups.labels]
                queries[name] = (wanted @ generator[name].query_proj.to(wanted.dtype).mT).float()
            with record_function(GENERATOR_LABEL):
                return generator[name].read(inputs, normalized[name][read_index])

        return update

    updates = {target.name: make_update(target.name) for target in generator.targets}
    kernel = getattr(model.config, "_attn_implementation", None)
    norms = find_plain_norms(model)

    @contextmanager
    def again(layer: int) -> Iterator[None]:
        own = {name: updates[name] for name in by_layer.get(layer, [])}
        with attention_kernel(model, kernel), lean_norms(norms), add_to_outputs(model, own):
            yield

    with (
        recompute_blocks(model, again) if checkpointing else nullcontext(),
        on_block_inputs(model, generator.layers, take_in),
        add_to_outputs(model, updates),
        head_at(model, rows.supervised),
        lean_norms(norms),
    ):
        output = model(
            input_ids=rows.input_ids,
            attention_mask=attention_mask(model, rows.segments),
            position_ids=segment_positions(rows.segments),
            use_cache=False,
        )
    if lookups is None:
        return output.logits, None
    strengths = torch.stack([generator[name].ridge_strength for name in first]).view(-1, 1, 1, 1)
    _, inverses = ridge_inverse(torch.stack(list(first.values())), strengths)  # of each chunk alone
    asked = torch.stack([queries[name] for name in first])
    longest = max(group.mask.shape[1] for group in first_chunks)
    weights = asked.new_zeros(*asked.shape[:2], longest)
    offset = 0
    for number in range(len(first_chunks)):
        keys = torch.stack([first_keys[name][number] for name in first])
        for row in range(keys.shape[1]):
            here = (lookups.chunks == offset + row).nonzero().squeeze(1)
            if len(here):
                solved = inverses[:, offset + row] @ asked[:, here].mT
                found = (keys[:, row] @ solved).mT
                weights[:, here, : found.shape[-1]] = found
        offset += keys.shape[1]
    return output.logits, weights


@contextmanager
def attention_kernel(model: nn.Module, name: str | None) -> Iterator[None]:
    """While open, the model attends with another kernel (`eager`, `grouped`, `sdpa`); None leaves its own."""
    own: Any = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if name is None or name == own or own is None:
        yield
        return
    if name == GROUPED:
        register_grouped_attention()
    model.set_attn_implementation(name)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(own)  # type: ignore[operator]


def segment_positions(segments: Tensor) -> Tensor:
    """Position of each token within its segment, from 0, `[rows, tokens]`."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def attention_mask(model: nn.Module, segments: Tensor) -> Tensor | None:
    """Additive causal mask within segments, `[rows, 1, tokens, tokens]`; padding attends to padding.

    None where a segment may outgrow the model's attention window: one mask would be taken for windowed and full blocks
    alike, so Transformers makes its own, which keep segments apart since positions restart with each.
    """
    config: Any = model.config
    config = config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window is not None and window < segments.shape[1] for window in windows):
        return None
    dtype = next(model.parameters()).dtype
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    blocked = ~(same & causal)
    return (
        torch.zeros(blocked.shape, dtype=dtype, device=segments.device)
        .masked_fill_(blocked, torch.finfo(dtype).min)
        .unsqueeze(1)
    )


@contextmanager
def head_at(model: nn.Module, supervised: Tensor) -> Iterator[None]:
    """Runs the language-model head at the supervised positions only; with 49,152 words it is a fifth of the model."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise BaseModelError(f"{type(model).__name__} has no output embeddings; pass a causal language model")

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][supervised], *args[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
