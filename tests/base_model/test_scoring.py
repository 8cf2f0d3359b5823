"""Option scores and reused keys and values against one plain forward pass an option, for every family."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.decoding import greedy_answers
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_cache import read_tokens
from generative_adapter.base_model.scoring import score_options
from generative_adapter.errors import ConfigError
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from tiny_models import HEAD_DIM, KV_HEADS, LAYERS

SHARED = [1, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]  # longer than a sliding window
PROMPTS = [[*SHARED, 60], [*SHARED, 70, 71, 72, 73, 74, 75, 76, 77], [*SHARED, 80, 81]]
OPTIONS = [[[90], [91, 92, 93]], [[94, 95]], [[96, 97, 98, 99, 100], [101], [102, 103]]]


def plain_score(base: BaseModel, prompt: list[int], option: list[int]) -> float:
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([prompt + option]), use_cache=False).logits[0]
    steps = logits[len(prompt) - 1 : -1].double().log_softmax(dim=-1)
    return steps[torch.arange(len(option)), torch.tensor(option)].mean().item()


def random_adapter(base: BaseModel, name: str, seed: int) -> LowRankAdapter:
    module = base.model.get_submodule(name)
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(3, module.in_features, generator=random)
    return LowRankAdapter({name: LowRankFactors(down, torch.randn(module.out_features, 3, generator=random))})


def check(found: list[tuple[float, ...]], expected: list[list[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("max_batch_tokens", [16384, 1])
def test_scores_are_those_of_one_pass_an_option(family_base: BaseModel, max_batch_tokens: int) -> None:
    expected = [[plain_score(family_base, p, o) for o in each] for p, each in zip(PROMPTS, OPTIONS, strict=True)]
    check(score_options(family_base, PROMPTS, OPTIONS, max_batch_tokens=max_batch_tokens), expected)
    prefix = read_tokens(family_base, SHARED)
    check(score_options(family_base, PROMPTS, OPTIONS, prefix=prefix, max_batch_tokens=max_batch_tokens), expected)
    check(score_options(family_base, PROMPTS, OPTIONS, prefix=prefix), expected)  # reading on left it as it was


def test_each_prompt_under_its_own_adapter(tiny_llama_base: BaseModel) -> None:
    base, name = tiny_llama_base, "model.layers.1.self_attn.o_proj"
    adapters = [random_adapter(base, name, 1), None, random_adapter(base, name, 2)]
    expected = []
    for prompt, options, adapter in zip(PROMPTS, OPTIONS, adapters, strict=True):
        with inject(base.model, [adapter]):
            expected.append([plain_score(base, prompt, option) for option in options])
    check(score_options(base, PROMPTS, OPTIONS, adapters=adapters, max_batch_tokens=40), expected)
    plain = [[plain_score(base, p, o) for o in each] for p, each in zip(PROMPTS, OPTIONS, strict=True)]
    assert abs(expected[0][0] - plain[0][0]) > 1e-2
    with inject(base.model, adapters[0]):
        shared = [[plain_score(base, p, o) for o in each] for p, each in zip(PROMPTS, OPTIONS, strict=True)]
    check(score_options(base, PROMPTS, OPTIONS, adapters=adapters[0]), shared)


def test_greedy_answers_from_reused_keys_and_values(family_base: BaseModel) -> None:
    prefix = read_tokens(family_base, SHARED)
    assert greedy_answers(family_base, PROMPTS, 7, [], prefix=prefix) == greedy_answers(family_base, PROMPTS, 7, [])
    assert prefix.cache.get_seq_length() == len(SHARED)


def test_what_is_kept_is_counted(tiny_llama_base: BaseModel) -> None:
    prefix = read_tokens(tiny_llama_base, SHARED)
    assert prefix.num_floats == len(SHARED) * LAYERS * 2 * KV_HEADS * HEAD_DIM
    assert prefix.num_bytes == 4 * prefix.num_floats


def test_what_does_not_fit_is_refused(tiny_llama_base: BaseModel) -> None:
    prefix = read_tokens(tiny_llama_base, SHARED)
    with pytest.raises(ConfigError, match="cached"):
        score_options(tiny_llama_base, [[5, 6, 7]], [[[1]]], prefix=prefix)
    with pytest.raises(ConfigError, match="at least one token more"):
        greedy_answers(tiny_llama_base, [SHARED], 3, [], prefix=prefix)
    with pytest.raises(ConfigError, match="as many"):
        score_options(tiny_llama_base, PROMPTS, OPTIONS[:2])
    with pytest.raises(ConfigError, match="option has no token"):
        score_options(tiny_llama_base, PROMPTS[:1], [[[]]])
    with pytest.raises(ConfigError, match="one each"):
        score_options(tiny_llama_base, PROMPTS, OPTIONS, adapters=[None])
    with pytest.raises(ConfigError, match="at least one token"):
        read_tokens(tiny_llama_base, [])
    assert score_options(tiny_llama_base, [], []) == []
