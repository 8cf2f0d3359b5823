"""Contexts read the slow way, chunk by chunk and row by row: what one parallel pass must equal.

`inference_reader` goes through the adapters that inference makes; `slow_reader` writes token by token and changes the
weights themselves, with gradients through automatic differentiation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.prefix_pass import PassRows
from generative_adapter.base_model.targets import is_transposed
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.generator.normalization import _POLAR_EXPRESS
from generative_adapter.generator.target_generator import TargetGenerator
from tiny_models import PAD, VOCABULARY

CHUNK_LENGTHS = ((11,), (12, 9), (10, 13, 8))
Reader = Callable[[Sequence[Sequence[int]]], "list[Callable[[Sequence[int]], Tensor]]"]


@dataclass
class Layout:
    """Rows of one pass, and what each segment is: (context, chunks in the adapter it reads or 0, token ids)."""

    contexts: list[list[list[int]]]
    first: list[tuple[Tensor, Tensor]]
    rows: PassRows
    membership: Tensor
    segments: list[tuple[int, int, list[int]]]


def pad_rows(rows: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    width = max(sum(map(len, row)) for row in rows) + 2
    ids, segments = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        joined = [token for segment in row for token in segment]
        ids[index, : len(joined)] = torch.tensor(joined)
        numbers = [number for number, segment in enumerate(row, start=1) for _ in segment]
        segments[index, : len(joined)] = torch.tensor(numbers)
    return ids, segments


def make_layout(lengths: Sequence[Sequence[int]] = CHUNK_LENGTHS, start: Sequence[int] = (), seed: int = 7) -> Layout:
    """Later chunks as rows of their own, two packed questions for every prefix, and one row of the plain model."""
    random = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(7, VOCABULARY, (count,), generator=random).tolist()

    contexts = [[tokens(length) for length in chunks] for chunks in lengths]
    written = {(context, 1): context for context in range(len(contexts))}
    prefixes: dict[tuple[int, int], int] = {}
    rows: list[list[tuple[int, int, list[int]]]] = [[(0, 0, tokens(7)), (0, 0, tokens(4))]]
    writers = []
    for context, chunks in enumerate(contexts):
        for level in range(1, len(chunks) + 1):
            prefixes[context, level] = len(prefixes)
            rows.append([(context, level, tokens(6)), (context, level, tokens(9))])
            if level < len(chunks):
                written[context, level + 1] = len(written)
                writers.append(len(rows))
                rows.append([(context, level, [*start, *chunks[level]])])
    membership = torch.zeros(len(prefixes), len(written))
    for (context, level), prefix in prefixes.items():
        for number in range(1, level + 1):
            membership[prefix, written[context, number]] = 1
    firsts = [[*start, *chunks[0]] for chunks in contexts]
    groups = [firsts[:2], firsts[2:]] if len(firsts) > 2 else [firsts]
    input_ids, segments = pad_rows([[ids for _, _, ids in row] for row in rows])
    supervised = (segments > 0) & (torch.rand(segments.shape, generator=random) < 0.8)
    reads = torch.tensor([prefixes[row[0][:2]] if row[0][1] else -1 for row in rows])
    pass_rows = PassRows(input_ids, segments, reads, torch.tensor(writers, dtype=torch.long), supervised, len(start))
    first = [pad_rows([group]) for group in groups]
    return Layout(contexts, first, pass_rows, membership, [part for row in rows for part in row])


def one_by_one(layout: Layout, read: Reader) -> Tensor:
    """The logits of every segment in a row of its own, under what `read` made of its context's chunks."""
    readers = [read(chunks) for chunks in layout.contexts]
    logits = [readers[context][level](ids) for context, level, ids in layout.segments]
    wanted = layout.rows.supervised[layout.rows.segments > 0]
    return torch.cat(logits)[wanted]


def inference_reader(model: nn.Module, generator: AdapterGenerator, start: Sequence[int]) -> Reader:
    """As GenerativeAdapter reads: chunk t is captured under the injected adapter of S_{t-1}."""

    def run(adapter: LowRankAdapter | None) -> Callable[[Sequence[int]], Tensor]:
        def logits(ids: Sequence[int]) -> Tensor:
            with inject(model, adapter) if adapter else nullcontext(), torch.no_grad():
                return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

        return logits

    def read(chunks: Sequence[Sequence[int]]) -> list[Callable[[Sequence[int]], Tensor]]:
        adapters: list[LowRankAdapter | None] = [None]
        states = {target.name: torch.zeros(generator[target.name].state_shape) for target in generator.targets}
        for chunk in chunks:
            before = adapters[-1]
            with inject(model, before) if before else nullcontext(), torch.no_grad():
                hidden = capture_block_inputs(model, generator.layers, torch.tensor([[*start, *chunk]]))
                increments = generator.write({layer: states[:, len(start) :] for layer, states in hidden.items()})
            states = {name: state + increments[name][0] for name, state in states.items()}
            adapters.append(generator.adapter(states))
        return [run(adapter) for adapter in adapters]

    return read


def slow_write(target: TargetGenerator, hidden: Tensor, below: Tensor | None) -> Tensor:
    """Eq. (3), token by token: the sum of (A2 h_j) k_i^T, j the token that the value of i is taken from, k_i = B1^T h_i
    and what the windows add; h_j comes from `below` where given."""
    state = torch.zeros(target.state_shape)
    normed = [h / (h.square().mean() + 1e-6).sqrt() * target.norm_weight for h in hidden]
    for i in range(len(normed)):
        j = min(i + target.value_shift, len(normed) - 1)
        key = target.key_proj @ normed[i]
        for window, projection in zip(target.key_windows, target.window_projs, strict=True):
            seen = normed[i::-1] if window > 0 else normed[i + 1 :]
            for distance, h in enumerate(seen):
                key = key + (1 - 1 / abs(window)) ** distance / abs(window) * (projection @ h)
        value = normed[j] if below is None else below[j] / (below[j].square().mean() + 1e-6).sqrt()
        value = target.value_proj @ value
        state = state + torch.outer(torch.cat([value, key]) if target.normalization == "ridge" else value, key)
    return state


def slow_normalize(target: TargetGenerator, state: Tensor) -> Tensor:
    """Eqs. (6)-(8) through automatic differentiation alone."""
    if target.normalization == "svd":
        left, _, right = torch.linalg.svd(state)
        return left[:, : target.rank] @ right[: target.rank]
    if target.normalization == "ridge":
        values, keys = state.chunk(2)
        return torch.linalg.solve(keys + target.ridge_strength * torch.eye(len(keys)), values.T).T
    polar = state / state.square().sum().sqrt()
    if target.normalization == "newton_schulz":
        for a, b, c in _POLAR_EXPRESS:
            gram = polar @ polar.T
            polar = a * polar + b * gram @ polar + c * gram @ gram @ polar
    return polar


def slow_reader(model: nn.Module, generator: AdapterGenerator, start: Sequence[int]) -> Reader:
    """Chunks one after another, with gradients: every chunk and segment runs on weights W + A1 norm(S) B2, eq. (6)."""

    def call(states: dict[str, Tensor] | None, ids: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        weights: dict[str, Tensor] = {}
        for name, state in (states or {}).items():
            target, linear = generator[name], model.get_submodule(name)
            delta = target.scale * target.output_proj @ slow_normalize(target, state) @ target.query_proj
            weights[f"{name}.weight"] = linear.weight + (delta.T if is_transposed(linear) else delta)
        keywords = {"input_ids": torch.tensor([ids]), "use_cache": False, "output_hidden_states": True}
        output = torch.func.functional_call(model, weights, (), keywords)
        return output.logits[0], output.hidden_states

    def read(chunks: Sequence[Sequence[int]]) -> list[Callable[[Sequence[int]], Tensor]]:
        history: list[dict[str, Tensor] | None] = [None]
        for chunk in chunks:
            hidden = call(history[-1], [*start, *chunk])[1]
            before = history[-1]
            after = {}
            for target in generator.targets:
                own = hidden[target.layer][0, len(start) :]
                below = None if generator.value_layer is None else hidden[generator.value_layer][0, len(start) :]
                after[target.name] = slow_write(generator[target.name], own, below)
                if before is not None:
                    after[target.name] = before[target.name] + after[target.name]
            history.append(after)
        return [lambda ids, states=states: call(states, ids)[0] for states in history]

    return read
