"""Scores and continuations of rows under their own adapters, against one row at a time and merged weights."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.inject import merge
from generative_adapter.errors import ConfigError
from generative_adapter.evaluation.adapted_rows import continue_rows, score_rows
from tiny_models import END, tiny_base

TEXTS = ("Ann lives in Bonn.", "Carl keeps bees in Delft, and a boat.")


@pytest.fixture
def adapters(tiny_adapter):
    return [tiny_adapter.adapter(tiny_adapter.contextualize(text)) for text in TEXTS]


def slow_score(model, prompt, target):
    """One forward pass a target token."""
    total, greedy, ids = 0.0, True, list(prompt)
    for token in target:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)
        total += scores[token].item()
        greedy &= int(scores.argmax()) == token
        ids.append(token)
    return total, greedy


def slow_continuation(model, prompt, length):
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_rows_of_unequal_length_equal_one_token_at_a_time(tiny_adapter, adapters):
    base = tiny_adapter.base
    models = [
        merge(base.model, adapters[0]),
        base.model,
        merge(base.model, adapters[1]),
        merge(base.model, adapters[1]),
    ]
    prompts = [[9, 17, 33], [50, 51, 52, 53, 54, 55, 56], [61], [77, 76]]
    targets = [[100, 101], slow_continuation(models[1], prompts[1], 3), [90, 91, 92, 93, 94], [33]]
    found = score_rows(base, list(zip(prompts, targets, strict=True)), [adapters[0], None, adapters[1], adapters[1]])
    slow = [slow_score(*row) for row in zip(models, prompts, targets, strict=True)]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in slow], abs=1e-4)
    assert [greedy for _, greedy in found] == [False, True, False, False]
    plain = slow_score(base.model, prompts[0], targets[0])[0]
    assert abs(plain - slow[0][0]) > 0.05
    assert score_rows(base, [(prompts[0], targets[0])], [adapters[0]])[0][0] == pytest.approx(slow[0][0], abs=1e-4)


def test_continuations_equal_one_token_at_a_time_and_stop(tiny_adapter, adapters):
    base = tiny_adapter.base
    prompts = [[9, 17, 33], [50, 51, 52, 53, 54], [50, 51, 52, 53, 54]]
    rows = [adapters[0], adapters[1], None]
    ends = {END, base.tokenizer.eos_token_id}
    expected = []
    for prompt, adapter in zip(prompts, rows, strict=True):
        model = base.model if adapter is None else merge(base.model, adapter)
        ids = slow_continuation(model, prompt, 12)
        ids = ids[: next((i for i, token in enumerate(ids) if token in ends), 12)]
        expected.append(base.tokenizer.decode(ids, skip_special_tokens=True))
    assert len(set(expected)) == 3
    assert continue_rows(base, prompts, rows, max_new_tokens=12) == expected
    stop = expected[1][3:5]
    cut = [text.split(stop, 1)[0] for text in expected]
    assert cut != expected
    assert continue_rows(base, prompts, rows, until=[stop, "never there"], max_new_tokens=12) == cut


def test_windowed_attention_and_other_layouts(tiny_adapter):
    for family in ("gemma2", "gpt2"):
        base = tiny_base(family)
        rows = [([9, 17, 33, 40, 41, 42, 43, 44], [100, 101]), ([50], [90, 91, 92])]
        slow = [slow_score(base.model, *row)[0] for row in rows]
        assert [score for score, _ in score_rows(base, rows, [None, None])] == pytest.approx(slow, abs=1e-4)


def test_nothing_to_read(tiny_llama_base):
    for row in (([], [9]), ([9], [])):
        with pytest.raises(ConfigError, match="at least one of each"):
            score_rows(tiny_llama_base, [row], [None])
    for prompt, length in (([], 3), ([9], 0)):
        with pytest.raises(ConfigError, match="at least one"):
            continue_rows(tiny_llama_base, [prompt], [None], max_new_tokens=length)
