"""General ability of methods on a tiny model, against a plain loop over transformers' own loss."""

from __future__ import annotations

import json
import math

import pytest
import torch

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.general_ability import measure_general_ability
from generative_adapter.evaluation.metrics import bootstrap_mean
from generative_adapter.evaluation.perplexity import held_out_segments
from generative_adapter.methods.closed_book import ClosedBook
from generative_adapter.methods.full_context import FullContext
from generative_adapter.methods.generative_adapter import GenerativeAdapterMethod
from generative_adapter.methods.protocol import Context

CONTEXTS = [Context("Ada keeps bees in Ulm."), Context("Bo sells red kites."), Context("Cy naps at noon, and more.")]


@pytest.fixture
def segments(tiny_llama_base: BaseModel, tmp_path) -> list[list[int]]:
    path = tmp_path / "held_out.txt"
    path.write_text("The river is long, and nobody has ever measured it to its end. " * 3)
    return held_out_segments(path, tiny_llama_base, 5, 31, seed=1)


def perplexity(base: BaseModel, segments: list[list[int]], adapter=None) -> float:
    losses = []
    for segment in segments:
        ids = torch.tensor([segment])
        with torch.no_grad(), inject(base.model, [adapter]):
            losses += [base.model(input_ids=ids, labels=ids).loss.item()]  # all of one length
    return math.exp(sum(losses) / len(losses))


def test_against_a_plain_loop(tiny_llama_base: BaseModel, tiny_adapter: GenerativeAdapter, segments) -> None:
    told: list[tuple[int, int]] = []
    method = GenerativeAdapterMethod(tiny_adapter)
    found = measure_general_ability(
        tiny_llama_base, method, CONTEXTS, segments, progress=lambda *done: told.append(done)
    )
    plain = perplexity(tiny_llama_base, segments)
    expected = [
        perplexity(tiny_llama_base, segments, tiny_adapter.adapter(tiny_adapter.contextualize(context.text)))
        for context in CONTEXTS
    ]
    assert found.plain_perplexity == pytest.approx(plain, rel=1e-5)
    assert found.perplexities == pytest.approx(expected, rel=1e-5)
    ratios = [each / plain for each in expected]
    assert max(abs(ratio - 1) for ratio in ratios) > 0.01  # a random generator does harm
    by_hand = bootstrap_mean(ratios, range(3))
    assert found.ratio.mean == pytest.approx(sum(ratios) / 3, rel=1e-5)
    assert (found.ratio.low, found.ratio.high) == pytest.approx((by_hand.low, by_hand.high), rel=1e-5)
    assert found.max_ratio == pytest.approx(max(ratios), rel=1e-5)
    assert (found.method, found.num_contexts, found.num_segments) == ("generative-adapter", 3, 5)
    assert found.num_tokens == 5 * 30 and told == [(1, 3), (2, 3), (3, 3)]
    assert json.loads(json.dumps(found.to_dict()))["ratio"]["num_clusters"] == 3


def test_the_base_model_keeps_its_ability(tiny_llama_base: BaseModel, segments) -> None:
    found = measure_general_ability(tiny_llama_base, ClosedBook(tiny_llama_base), CONTEXTS[:1], segments)
    assert found.ratio.mean == 1 and found.perplexities == (found.plain_perplexity,)
    assert (found.ratio.low, found.ratio.high) == (None, None)


def test_what_cannot_be_measured(tiny_llama_base: BaseModel, segments) -> None:
    method = ClosedBook(tiny_llama_base)
    with pytest.raises(ConfigError, match="full-context can't tell"):
        measure_general_ability(tiny_llama_base, FullContext(tiny_llama_base), CONTEXTS, segments)
    with pytest.raises(DataError, match="needs contexts"):
        measure_general_ability(tiny_llama_base, method, [], segments)
    with pytest.raises(DataError, match="1 segments hold no token"):
        measure_general_ability(tiny_llama_base, method, CONTEXTS, [[40]])
