"""Perplexities against one prediction at a time, with the memory grown chunk by chunk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.prompts import start_ids
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.perplexity import held_out_segments, measure_perplexity
from tiny_models import tiny_base, tiny_checkpoint, tiny_config


def loss(base, ids: list[int], first: int, adapter=None) -> torch.Tensor:
    """-log P of the tokens from place `first` on."""
    with torch.no_grad(), inject(base.model, [adapter]):
        logits = base.model(torch.tensor([ids])).logits[0].double()
    return F.cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="none")


@pytest.mark.parametrize(("family", "begin"), [("llama", False), ("llama", True), ("gpt2", False)])
@pytest.mark.parametrize("pass_tokens", [1, 64])
def test_against_a_slow_loop(family: str, begin: bool, pass_tokens: int) -> None:
    base = tiny_base(family, begin=begin)
    generator = tiny_checkpoint(base, tiny_config(scale=3.0)).generator
    random = torch.Generator().manual_seed(2)
    segments = torch.randint(9, 250, (3, 17), generator=random).tolist()
    start = start_ids(base.tokenizer)
    sums: dict[str, list[torch.Tensor]] = {}
    for ids in segments:
        chunks = [ids[0:6], ids[6:12], ids[12:17]]
        states, adapter, skipped = None, None, max(1, len(start))
        for number, chunk in enumerate(chunks):
            row = [*start, *chunk]
            if number:
                sums.setdefault("completion", []).append(loss(base, row, skipped, adapter))
                sums.setdefault("plain_completion", []).append(loss(base, row, skipped))
                before = [*start, *(token for earlier in chunks[:number] for token in earlier)]
                expected = loss(base, [*before, *chunk], len(before))
                sums.setdefault("in_context_completion", []).append(expected)
            with inject(base.model, [adapter]):
                hidden = capture_block_inputs(base.model, generator.layers, torch.tensor([row]))
            written = generator.write({layer: h[:, len(start) :] for layer, h in hidden.items()})
            states = written if states is None else {name: states[name] + written[name] for name in written}
            adapter = generator.adapter({name: state[0] for name, state in states.items()})
            sums.setdefault("reconstruction", []).append(loss(base, row, skipped, adapter))
            sums.setdefault("plain_reconstruction", []).append(loss(base, row, skipped))
    told: list[tuple[int, int]] = []
    result = measure_perplexity(
        base, generator, segments, 6, pass_tokens=pass_tokens, progress=lambda *done: told.append(done)
    )
    for name, losses in sums.items():
        assert getattr(result, name) == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-3), name
    assert abs(math.log(result.reconstruction / result.plain_reconstruction)) > 0.005  # the adapter shows
    assert (result.num_segments, result.segment_tokens, result.chunk_tokens) == (3, 17, 6)
    assert told[-1] == (3, 3) and len(told) == (3 if pass_tokens == 1 else 1)


def test_one_chunk_has_nothing_to_complete() -> None:
    base = tiny_base()
    result = measure_perplexity(base, tiny_checkpoint(base).generator, [[9, 10, 11]], 13)
    assert result.completion is result.plain_completion is result.in_context_completion is None
    assert result.reconstruction is not None
    assert json.loads(json.dumps(result.to_dict()))["chunk_tokens"] == 13


def test_segments_lie_within_a_document(tmp_path: Path) -> None:
    base = tiny_base()
    path = tmp_path / "texts.jsonl"
    texts = ["abcdefghij" * 5, "x" * 9, "klmnopqrst" * 2]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = held_out_segments(path, base, 7, 10)
    assert sorted(map(base.tokenizer.decode, found)) == ["abcdefghij"] * 5 + ["klmnopqrst"] * 2
    assert held_out_segments(path, base, 3, 10, seed=1) == held_out_segments(path, base, 3, 10, seed=1)
    assert len({tuple(map(tuple, held_out_segments(path, base, 3, 10, seed=seed))) for seed in range(9)}) > 1
    with pytest.raises(DataError, match=r"7 segments of 10 tokens .* 8 were asked for"):
        held_out_segments(path, base, 8, 10)
    with pytest.raises(ConfigError, match="segment_tokens must be positive"):
        held_out_segments(path, base, 1, 0)
