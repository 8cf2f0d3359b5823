"""Greedy decoding that stops where an answer ends; the rest of the way to an answer: test_contextualizer_answers."""

import pytest
import torch

from generative_adapter.base_model.decoding import greedy_answers
from generative_adapter.errors import ConfigError

PROMPTS = [[5, 9, 31, 40], [7, 8]]


def rows(base, prompt, count):
    """The likeliest next tokens one by one, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_an_end_of_several_tokens_stops_its_row_only(tiny_llama_base):
    first, second = (rows(tiny_llama_base, prompt, 12) for prompt in PROMPTS)
    end = first[4:6]
    stop = next(n for n in range(2, 13) if first[n - 2 : n] == end)
    answers = greedy_answers(tiny_llama_base, PROMPTS, 12, end)
    assert answers[0].num_generated_tokens == stop
    assert answers[0].text == tiny_llama_base.tokenizer.decode(first[: stop - 2], skip_special_tokens=True).strip()
    other = next((n for n in range(2, 13) if second[n - 2 : n] == end), 12)
    assert answers[1].num_generated_tokens == other
    assert [answer.num_prompt_tokens for answer in answers] == [4, 2]


def test_the_prompt_is_no_part_of_the_end(tiny_llama_base):
    """A prompt that ends with the first token of the end doesn't end the answer with its second."""
    expected = rows(tiny_llama_base, PROMPTS[1], 6)
    (answer,) = greedy_answers(tiny_llama_base, [PROMPTS[1]], 6, [PROMPTS[1][-1], expected[0]])
    assert answer.num_generated_tokens > 1


def test_an_answer_needs_room(tiny_llama_base):
    with pytest.raises(ConfigError, match="max_new_tokens must be at least 1, got 0"):
        greedy_answers(tiny_llama_base, PROMPTS, 0, [])
