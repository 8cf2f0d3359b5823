"""What one training pass costs: operations, and bytes of a process. Arithmetic only.

A pass reads first chunks under the plain base model without gradients, then runs rows with gradients under the adapters
of prefixes (`base_model.prefix_pass`). Symbols: d_h hidden width, d_r state width, s numbers of a state (d_r^2, twice
that for `ridge`), n written tokens, m tokens of the rows. Per target, forward:

    keys and values     2 n d_h k, k = 2 d_r + one d_r a key window + gates; windows 2 n c d_r each
    memories            2 n s, and their sums over prefixes 2 P C s for P prefixes of C written chunks
    reads               2 m (d_in d_r + d_r^2 + d_r d_out)

and backward twice that, less what has no gradient (the base model's hidden states in first chunks and at the lowest
target). Normalisation: `generator.costs`.

Leaves out: optimisers, which take a few operations a parameter, and what is not a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from generative_adapter.base_model.costs import BaseSizes, activation_bytes, backward_flops, forward_flops
from generative_adapter.config import GeneratorConfig, TargetShape
from generative_adapter.generator.costs import iterates, key_width, normalization_flops
from generative_adapter.generator.subspace import OVERSAMPLING

if TYPE_CHECKING:
    from generative_adapter.training.batches import Batch

_DISTILLED_BYTES = 12  # float32 logits, their log-softmax and its gradient


@dataclass(frozen=True)
class PassLayout:
    """How many tokens, rows and states a pass has; means over a run may be no whole numbers.

    Attributes:
        first_tokens: computed tokens of first chunks, padding included.
        first_row_tokens: tokens of a row of them.
        row_tokens: tokens of a row with gradients.
        all_row_tokens: computed tokens of all rows with gradients, padding included.
        supervised_tokens: positions whose next token is predicted.
        chunk_tokens: tokens of a chunk.
        first_chunks: written chunks that the plain base model read.
        later_chunks: written chunks that are rows with gradients.
        prefixes: states that are normalised, a target.
        context_tokens: real tokens of the contexts.
        teacher_tokens: tokens that a distillation's teacher reads.
        teacher_row_tokens: tokens of a row of them; None: those of a context.
        distilled_tokens: positions that it is asked at; None: the supervised ones.
    """

    first_tokens: float
    first_row_tokens: float
    row_tokens: float
    all_row_tokens: float
    supervised_tokens: float
    chunk_tokens: float
    first_chunks: float
    later_chunks: float
    prefixes: float
    context_tokens: float
    teacher_tokens: float = 0.0
    teacher_row_tokens: float | None = None
    distilled_tokens: float | None = None

    @property
    def computed_tokens(self) -> float:
        """Tokens that the base model computes, padding included."""
        return self.first_tokens + self.all_row_tokens


@dataclass(frozen=True)
class Flops:
    """Operations by what they are for.

    Attributes:
        base_forward: of the base model, first chunks and a distillation's teacher included.
        base_backward: through the base model; with gradient checkpointing its second forward pass too.
        generator: projections, memories and reads, both directions.
        normalization: of the memories, both directions.
    """

    base_forward: float = 0.0
    base_backward: float = 0.0
    generator: float = 0.0
    normalization: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.base_forward + self.base_backward + self.generator + self.normalization

    def plus(self, other: Flops, times: float = 1.0) -> Flops:
        """These and `times` those of another."""
        return Flops(*(getattr(self, name) + times * getattr(other, name) for name in self.__dataclass_fields__))


def pass_flops(
    sizes: BaseSizes,
    config: GeneratorConfig,
    targets: Sequence[TargetShape],
    layout: PassLayout,
    *,
    checkpointing: bool = False,
) -> Flops:
    """Operations of one pass, forward and backward; the formulas stand at the top of this module and of `costs`."""
    lowest, first = _lowest(sizes, targets)
    rows = (layout.all_row_tokens, layout.row_tokens)
    again = 0.0
    base_forward = forward_flops(sizes, layout.first_tokens, layout.first_row_tokens)
    base_forward += forward_flops(sizes, *rows, layout.supervised_tokens)
    if layout.teacher_tokens:
        teacher_row, distilled = layout.teacher_row_tokens, layout.distilled_tokens
        if teacher_row is None:
            teacher_row = layout.context_tokens / max(1.0, layout.first_chunks)
        if distilled is None:
            distilled = layout.supervised_tokens
        base_forward += forward_flops(sizes, layout.teacher_tokens, teacher_row, distilled)
    reads = [_reads(target, config, layout) for target in targets]
    if checkpointing:
        again = forward_flops(sizes, *rows)
    generator = sum(reads) * (2 if checkpointing else 1)
    for target, read in zip(targets, reads, strict=True):
        at_lowest = target.layer == lowest
        generator += 2 * read
        if target.name == first:
            generator -= 2 * layout.all_row_tokens * target.in_features * config.state_dim
        generator += _writes(config, sizes.hidden_size, layout, hidden_has_gradient=not at_lowest)
    states = layout.prefixes * len(targets)
    return Flops(
        base_forward,
        backward_flops(sizes, *rows, layout.supervised_tokens, lowest, first) + again,
        generator,
        sum(normalization_flops(config)) * states,
    )


def batch_layout(batch: Batch) -> PassLayout:
    """The layout of a pass as it is assembled; rows and chunks of several lengths by their means."""
    rows, num_tokens = batch.rows.input_ids.shape
    first_tokens = attended = chunks = written = 0
    for _, inner in batch.first:  # each group's chunks are written padded to its longest
        lengths = torch.stack([(inner == number).sum(dim=1) for number in range(1, int(inner.max()) + 1)])
        number = int((lengths > 0).sum())
        first_tokens += inner.numel()
        attended += inner.numel() * inner.shape[1]
        chunks += number
        written += number * (int(lengths.max()) - batch.rows.num_start_tokens)
    teacher = batch.teacher
    return PassLayout(
        first_tokens=first_tokens,
        first_row_tokens=attended / max(1, first_tokens),
        row_tokens=num_tokens,
        all_row_tokens=rows * num_tokens,
        supervised_tokens=len(batch.labels),
        chunk_tokens=written / max(1, chunks),
        first_chunks=chunks,
        later_chunks=len(batch.rows.writers),
        prefixes=len(batch.membership),
        context_tokens=written,
        teacher_tokens=0 if teacher is None else teacher.input_ids.numel(),
        teacher_row_tokens=None if teacher is None else teacher.input_ids.shape[1],
        distilled_tokens=None if teacher is None else len(teacher.labels),
    )


def batches_flops(
    sizes: BaseSizes,
    config: GeneratorConfig,
    targets: Sequence[TargetShape],
    batches: Sequence[Batch],
    *,
    checkpointing: bool = False,
) -> float:
    """Operations of passes as they are assembled, forward and backward."""
    layouts = [batch_layout(batch) for batch in batches]
    return sum(pass_flops(sizes, config, targets, layout, checkpointing=checkpointing).total for layout in layouts)


def pass_bytes(
    sizes: BaseSizes,
    config: GeneratorConfig,
    targets: Sequence[TargetShape],
    layout: PassLayout,
    number_bytes: int,
    *,
    attention: str,
    checkpointing: bool,
) -> dict[str, float]:
    """About what a pass keeps until its backward: `activations`, `memories`, `generator_inputs`, `logits`.

    `memories`: per target, of every written chunk its increment, of every prefix the sum, the normalised state, what
    the normalisation's backward needs, and the normalised state of each row in the base model's type.
    `generator_inputs`: hidden states as written, keys and values, the projections in the base model's type, what reads
    keep. `logits`: as they came and their gradient, both in the base model's type; where a teacher reads, also the
    float32 copies of `distillation_losses`.
    """
    lowest, first = _lowest(sizes, targets)
    width = config.state_dim
    state = width * width * (2 if config.normalization == "ridge" else 1)
    kept = {"svd": 2 * width**2, "newton_schulz": 6 * width**2, "ridge": 2 * width**2}.get(config.normalization, 0)
    if iterates(config):
        kept = 2 * width * (config.rank + OVERSAMPLING)
    chunks = layout.first_chunks + layout.later_chunks
    num_rows = layout.all_row_tokens / max(1.0, layout.row_tokens)
    memories = 4 * (chunks * state + layout.prefixes * (state + width**2 + kept))
    memories += number_bytes * width**2 * (layout.prefixes + num_rows)
    written = _written_tokens(layout)
    logit_bytes = 2 * number_bytes + (2 * number_bytes + _DISTILLED_BYTES if layout.teacher_tokens else 0)
    inputs = 0.0
    for target in targets:
        inputs += written * (sizes.hidden_size * (4 + number_bytes) + 4 * 2 * key_width(config))
        inputs += number_bytes * width * (2 * sizes.hidden_size + target.in_features + target.out_features)
        inputs += 0 if checkpointing else 2 * number_bytes * width * layout.all_row_tokens
    return {
        "activations": activation_bytes(
            sizes,
            layout.all_row_tokens,
            layout.row_tokens,
            number_bytes,
            attention=attention,
            checkpointing=checkpointing,
            first_layer=lowest,
            first_target=first,
        ),
        "memories": memories * len(targets),
        "generator_inputs": inputs,
        "logits": logit_bytes * layout.supervised_tokens * sizes.vocab_size,
    }


def _lowest(sizes: BaseSizes, targets: Sequence[TargetShape]) -> tuple[int, str]:
    """Block of the lowest target, and the first target in it, in the order of the modules."""
    layer = min(target.layer for target in targets)
    block = sizes.blocks[layer]
    own = {target.name for target in targets if target.layer == layer}
    return layer, next(name for name in (f"{block.path}.{each}" for each, _, _ in block.linears) if name in own)


def _written_tokens(layout: PassLayout) -> float:
    return layout.first_chunks * layout.chunk_tokens + layout.later_chunks * layout.row_tokens


def _reads(target: TargetShape, config: GeneratorConfig, layout: PassLayout) -> float:
    width = config.state_dim
    return 2 * layout.all_row_tokens * (target.in_features * width + width * width + width * target.out_features)


def _writes(config: GeneratorConfig, hidden_size: int, layout: PassLayout, *, hidden_has_gradient: bool) -> float:
    """Both directions of keys, values and memories of one target."""
    width = config.state_dim
    state = width * width * (2 if config.normalization == "ridge" else 1)
    written = _written_tokens(layout)
    own = key_width(config)
    elsewhere = 0 if config.value_layer is None else width
    total = 2 * (2 * written * hidden_size * (own + elsewhere))  # forward, and backward to the projections
    if hidden_has_gradient:
        total += 2 * layout.later_chunks * layout.row_tokens * hidden_size * own
    squares = layout.first_chunks * layout.chunk_tokens**2 + layout.later_chunks * layout.row_tokens**2
    total += 2 * len(config.key_windows) * squares * width * (3 if config.window_gates else 2)
    total += 3 * 2 * written * state
    chunks = layout.first_chunks + layout.later_chunks
    return total + 2 * 2 * layout.prefixes * chunks * state
