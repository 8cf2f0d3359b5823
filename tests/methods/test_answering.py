"""Operations of answers, step by step."""

from __future__ import annotations

import pytest

from generative_adapter.base_model.costs import base_sizes, forward_flops
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.methods.answering import answering_flops
from generative_adapter.methods.protocol import Answer


def test_every_token_attends_to_those_before_it(tiny_llama_base: BaseModel) -> None:
    sizes, numbers = base_sizes(tiny_llama_base.model), 1000
    answer = Answer("text", num_prompt_tokens=7, num_cached_tokens=30, num_new_tokens=200)
    expected = forward_flops(sizes, 7, 37, 1) + 2 * numbers * 7
    expected += sum(forward_flops(sizes, 1, 37 + i, 1) + 2 * numbers for i in range(1, 200))
    assert answering_flops(sizes, [answer], numbers) == pytest.approx(expected, rel=1e-9)
    scored = Answer("text", (-1.0, -2.0, -1.5), 7, 30, 12)  # three options of four tokens, of which three are read
    expected = forward_flops(sizes, 7, 37, 1) + 3 * forward_flops(sizes, 3, 40, 3)
    assert answering_flops(sizes, [scored]) == pytest.approx(expected, rel=1e-9)
    mean = (answering_flops(sizes, [scored]) + answering_flops(sizes, [answer])) / 2
    assert answering_flops(sizes, [scored, answer]) == pytest.approx(mean)
    one = Answer("text", num_prompt_tokens=7, num_new_tokens=1)
    assert answering_flops(sizes, [one]) == forward_flops(sizes, 7, 7, 1)
