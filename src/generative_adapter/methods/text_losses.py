"""How well a model predicts a text: -log P of its tokens, as it stands, with an adapter if one is given.

What methods share that can tell it (`protocol.PredictsText`). Leaves out: which texts, and means over them
(`evaluation.general_ability`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import start_ids
from generative_adapter.config import require
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.methods.prompting import context_window

PASS_TOKENS = 4096


@torch.no_grad()
def text_losses(
    base: BaseModel,
    texts: Sequence[Sequence[int]],
    *,
    adapter: LowRankAdapter | None = None,
    pass_tokens: int = PASS_TOKENS,
) -> list[tuple[float, int]]:
    """-log P of each text, summed over its tokens, and the number of those: sum over i of -log P(x_i | x_0 .. x_{i-1}).

    Every text is read alone, behind the begin-of-sequence token where the tokenizer adds one. That token is not
    predicted; where there is none, the text's first token has nothing before it and is not predicted either. Texts of
    one length share a pass, so there is no padding.

    Args:
        base: the base model, with whatever is injected into it.
        texts: token ids of each, without begin-of-sequence tokens.
        adapter: one for all.
        pass_tokens: most tokens of a pass; one text always runs.

    Returns:
        One pair a text, in order; (0.0, 0) where there is nothing to predict.

    Raises:
        ConfigError: when a text is longer than the model's positions.
    """
    start, window = start_ids(base.tokenizer), context_window(base)
    longest = max((len(text) for text in texts), default=0)
    require(
        window is None or len(start) + longest <= window,
        f"a text of {longest} tokens doesn't fit the model's {window} positions; give shorter ones",
    )
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        by_length.setdefault(len(start) + len(text), []).append(index)
    found = [(0.0, 0)] * len(texts)
    with nullcontext() if adapter is None else inject(base.model, adapter):
        for length, indices in by_length.items():
            at_once = max(1, pass_tokens // max(1, length))
            for at in range(0, len(indices) if length > 1 else 0, at_once):
                part = indices[at : at + at_once]
                ids = torch.tensor([[*start, *texts[index]] for index in part], device=base.device)
                logits = base.model(input_ids=ids, use_cache=False).logits
                for index, row, own in zip(part, logits, ids, strict=True):
                    losses = F.cross_entropy(row[:-1].float(), own[1:], reduction="none")
                    found[index] = (losses.double().sum().item(), length - 1)
    return found
