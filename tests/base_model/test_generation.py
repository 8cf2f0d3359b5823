"""`generate` and `pipeline` of transformers under adapters."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, pipeline

from generative_adapter import generate
from generative_adapter.base_model.inject import inject, merge
from generative_adapter.base_model.targets import find_targets
from generative_adapter.errors import AdapterError
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from tiny_models import tiny_tokenizer

IDS = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]])
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def adapter(model, seed) -> LowRankAdapter:
    random = torch.Generator().manual_seed(seed)
    return LowRankAdapter(
        {
            shape.name: LowRankFactors(
                torch.randn(4, shape.in_features, generator=random),
                torch.randn(shape.out_features, 4, generator=random),
            )
            for shape in find_targets(model, ("attention_output", "feed_forward_down"), None)
        }
    )


@pytest.fixture
def model(tiny_llama_base):
    return tiny_llama_base.model


def test_every_row_is_generated_under_its_own_adapter(model):
    adapters = [adapter(model, 1), None, adapter(model, 2)]
    together = generate(model, IDS, adapters, **SETTINGS)
    for row, own in enumerate(adapters):
        alone = (merge(model, own) if own is not None else model).generate(IDS[row : row + 1], **SETTINGS)
        assert torch.equal(together[row, : alone.shape[1]], alone[0])
    assert not torch.equal(together[0, 4:], together[1, 4:])


def test_one_adapter_for_all_rows(model):
    own = adapter(model, 1)
    expected = merge(model, own).generate(IDS, **SETTINGS)
    assert torch.equal(generate(model, IDS, own, **SETTINGS), expected)
    assert torch.equal(generate(model, IDS, [own] * 3, **SETTINGS), expected)


@pytest.mark.parametrize("where", ["settings", "config"])
def test_beams_of_a_row_share_its_adapter(model, where):
    adapters = [adapter(model, 1), adapter(model, 2), None]
    beams = {"num_beams": 3, "num_return_sequences": 2}
    given = SETTINGS | (beams if where == "settings" else {"generation_config": GenerationConfig(**beams)})
    together = generate(model, IDS, adapters, **given)
    assert len(together) == 6
    alone = merge(model, adapters[0]).generate(IDS[:1], **SETTINGS, **beams)
    assert torch.equal(together[:2, : alone.shape[1]], alone)


def test_the_number_of_adapters_is_checked_and_the_model_left_alone(model):
    before = model.generate(IDS, **SETTINGS)
    with pytest.raises(AdapterError, match="3 prompts"):
        generate(model, IDS, [adapter(model, 1)], **SETTINGS)
    assert torch.equal(model.generate(IDS, **SETTINGS), before)


def test_a_pipeline_runs_under_an_adapter(tiny_llama_base):
    tokenizer = tiny_tokenizer()
    model = tiny_llama_base.model
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    own = adapter(model, 1)
    settings = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    plain = pipe("Who keeps the keys?", **settings)[0]["generated_text"]
    with inject(model, own):
        told = pipe("Who keeps the keys?", **settings)[0]["generated_text"]
    merged = pipeline("text-generation", model=merge(model, own), tokenizer=tokenizer, device="cpu")
    assert told == merged("Who keeps the keys?", **settings)[0]["generated_text"] != plain
    assert pipe("Who keeps the keys?", **settings)[0]["generated_text"] == plain
