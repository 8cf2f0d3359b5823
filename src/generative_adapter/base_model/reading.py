"""Chunks of a context through the base model and into what they add to a memory.

Leaves out: splitting a text into chunks (`prompts`, `text_blocks`), and the adapter that they are read under.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import pad_id, start_ids
from generative_adapter.generator.protocol import ContextGenerator

READING_TOKENS = 4096  # tokens of chunks that are read side by side, padding included


@torch.no_grad()
def read_chunks(base: BaseModel, generator: ContextGenerator, chunks: Sequence[list[int]]) -> dict[str, Tensor]:
    """What these chunks add to the states together (`ContextGenerator.taken_in`), on the CPU.

    Args:
        base: reads them, side by side, as it is at the time: with an adapter where one is injected.
        generator: writes.
        chunks: token ids, at least one each.
    """
    start, pad = start_ids(base.tokenizer), pad_id(base.tokenizer)
    longest = max(map(len, chunks))
    ids = torch.tensor([start + chunk + [pad] * (longest - len(chunk)) for chunk in chunks])
    lengths = torch.tensor([len(start) + len(chunk) for chunk in chunks])
    mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).to(base.device)
    padded = None if bool(mask.all()) else mask
    hidden = capture_block_inputs(base.model, generator.layers, ids.to(base.device), padded)
    own = {layer: states[:, len(start) :] for layer, states in hidden.items()}
    real = None if padded is None else padded[:, len(start) :]
    increments = {name: increment.cpu() for name, increment in generator.write(own, real).items()}
    return generator.taken_in(increments, None if real is None else real.cpu())


def reading_batches(chunks: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Chunks of ascending length in runs of at most `READING_TOKENS` with padding, or of one chunk."""
    batch: list[list[int]] = []
    for chunk in chunks:
        if batch and (len(batch) + 1) * len(chunk) > READING_TOKENS:
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def in_text_order(rows: Tensor, lengths: Sequence[int], num_rows: Sequence[int]) -> Tensor:
    """Rows of chunks that were read in order of length, those of one length as in the text, in the order of the text.

    Args:
        rows: of all chunks, `[rows, width]`.
        lengths: tokens of each chunk, in the order of the text.
        num_rows: rows of each, in the same order.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    parts = dict(zip(order, rows.split([num_rows[index] for index in order]), strict=True))
    return torch.cat([parts[index] for index in range(len(lengths))])
