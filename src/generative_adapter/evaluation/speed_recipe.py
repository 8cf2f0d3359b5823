"""What `genadapter bench training` measures unless told otherwise: steps on segments of synthetic text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from generative_adapter.base_model.loading import choose_device, choose_dtype
from generative_adapter.config import GeneratorConfig, require
from generative_adapter.data.facts import sample_facts_record
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.source_config import SourceConfig

_NUM_TEXTS = 32
_SHORT_CHUNK = 256  # tokens; fused attention on a CPU pays off in longer rows only
_CHARACTERS_PER_TOKEN = 8  # no tokenizer takes more on average, so every text has the tokens of a segment


def segments_recipe(
    folder: Path,
    *,
    num_segments: int = 4,
    segment_tokens: int = 512,
    chunk_tokens: int = 128,
    state_dim: int = 128,
    rank: int | None = None,
    normalization: str = "newton_schulz",
    device: str = "auto",
    seed: int = 0,
) -> TrainingRecipe:
    """A recipe of reconstruction and completion (eq. 5) on segments of synthetic text, which is written to a folder.

    Args:
        folder: where the text goes; it has to stay as long as the recipe is used.
        num_segments: contexts of a step.
        segment_tokens: tokens of a context.
        chunk_tokens: tokens of a chunk.
        state_dim: d_r.
        rank: r; None: the same as `state_dim`.
        normalization: of the project's step.
        device: of the recipe; on a CPU and with short chunks rows attend by `grouped`, and where the CPU computes in
            bfloat16 so does the backward of `newton_schulz`, as in the shipped recipes for CPUs.
        seed: decides the text.

    Raises:
        ConfigError: when the sizes don't fit one another.
    """
    require(
        segment_tokens > chunk_tokens,
        f"a segment must be longer than a chunk ({chunk_tokens} tokens), got {segment_tokens}: there would be nothing "
        "to complete",
    )
    chosen = choose_device(device)
    on_cpu = chosen.type == "cpu"
    fast = on_cpu and choose_dtype("auto", chosen) == torch.bfloat16
    rng = random.Random(seed)
    path = folder / "texts.jsonl"
    texts = []
    for _ in range(max(_NUM_TEXTS, num_segments)):
        text = ""
        while len(text) < segment_tokens * _CHARACTERS_PER_TOKEN:
            text += sample_facts_record(rng, num_facts=8).context + "\n\n"
        texts.append(json.dumps({"text": text}) + "\n")
    path.write_text("".join(texts), encoding="utf-8")
    return TrainingRecipe(
        sources=(
            SourceConfig(
                "text",
                paths=(str(path),),
                packing=True,
                context_tokens=(segment_tokens, segment_tokens),
                held_out_share=0.0,
            ),
        ),
        output=str(folder / "run"),
        cache=str(folder / "cache"),
        generator=GeneratorConfig(
            state_dim=state_dim,
            rank=state_dim if rank is None else rank,
            normalization=normalization,
            chunk_tokens=chunk_tokens,
        ),
        contexts_per_step=num_segments,
        row_tokens=chunk_tokens,
        normalization_backward="bfloat16" if fast else "float32",
        attention="grouped" if on_cpu and chunk_tokens <= _SHORT_CHUNK else "sdpa",
        device=device,
    )
