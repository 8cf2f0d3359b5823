"""-log P of texts under each method's state, against transformers' own loss; no-adapter against an adapter of zero."""

from __future__ import annotations

import math

import pytest
import torch

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import start_ids
from generative_adapter.checkpoint import save_generator
from generative_adapter.config import PromptConfig
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import ConfigError
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.methods.closed_book import ClosedBook
from generative_adapter.methods.continual_pretraining import ContinualPretraining
from generative_adapter.methods.fitting import FitSettings
from generative_adapter.methods.full_context import FullContext
from generative_adapter.methods.generative_adapter import GenerativeAdapterMethod
from generative_adapter.methods.no_adapter import NoAdapter, build
from generative_adapter.methods.protocol import Context, Method, PredictsText, Query, Wording
from generative_adapter.methods.settings import MethodSettings
from generative_adapter.methods.text_losses import text_losses
from generative_adapter.methods.tuned_weights import FullWeights, LoraWeights
from tiny_models import tiny_base, tiny_checkpoint

WORDING = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:")
TEXTS = [list(range(20, 33)), list(range(90, 70, -1)), [41, 40, 43, 42, 45, 44, 47, 46, 49, 48, 51, 50, 53]]


def slow_losses(
    base: BaseModel, texts: list[list[int]], adapter: LowRankAdapter | None = None
) -> list[tuple[float, int]]:
    """One text at a time, by the loss that transformers computes from labels: a mean over all but the first token."""
    found = []
    for text in texts:
        ids = torch.tensor([[*start_ids(base.tokenizer), *text]])
        with torch.no_grad(), inject(base.model, [adapter]):
            mean = base.model(input_ids=ids, labels=ids).loss.item()
        found.append((mean * (ids.shape[1] - 1), ids.shape[1] - 1))
    return found


def check(found: list[tuple[float, int]], expected: list[tuple[float, int]]) -> None:
    assert [number for _, number in found] == [number for _, number in expected]
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-5)


def test_losses_of_each_family(family_base: BaseModel) -> None:
    check(text_losses(family_base, TEXTS), slow_losses(family_base, TEXTS))


@pytest.mark.parametrize("pass_tokens", [1, 13, 26, 4096])
def test_begin_tokens_are_read_and_not_predicted(pass_tokens: int) -> None:
    base = tiny_base("llama", begin=True)
    found = text_losses(base, TEXTS, pass_tokens=pass_tokens)
    assert [number for _, number in found] == [13, 20, 13]
    check(found, slow_losses(base, TEXTS))


def test_texts_with_nothing_to_predict(tiny_llama_base: BaseModel) -> None:
    assert text_losses(tiny_llama_base, []) == []
    assert text_losses(tiny_llama_base, [[], [40]]) == [(0.0, 0), (0.0, 0)]
    begin = tiny_base("llama", begin=True)
    [(none, zero), (loss, one)] = text_losses(begin, [[], [40]])
    assert (none, zero, one) == (0.0, 0, 1) and loss > 0
    with pytest.raises(ConfigError, match="1024 tokens doesn't fit the model's 1024 positions"):
        text_losses(begin, [[40] * 1024])


def test_each_method_under_its_own_state(tiny_llama_base: BaseModel, tiny_adapter: GenerativeAdapter, context) -> None:
    plain = slow_losses(tiny_llama_base, TEXTS)
    for method in (ClosedBook(tiny_llama_base), NoAdapter(tiny_llama_base, PromptConfig())):
        assert isinstance(method, PredictsText)
        check(method.text_losses(method.take_in(context), TEXTS), plain)
    generated = GenerativeAdapterMethod(tiny_adapter)
    states = [generated.take_in(each) for each in (context, Context("Another text."))]
    for state in states:
        found = generated.text_losses(state, TEXTS)
        check(found, slow_losses(tiny_llama_base, TEXTS, state.adapter))
        assert all(abs(one - other) > 1e-3 for (one, _), (other, _) in zip(found, plain, strict=True))
    assert not isinstance(FullContext(tiny_llama_base), PredictsText)  # its context isn't in a state of the model


@pytest.mark.parametrize("form", ["full", "lora"])
def test_fine_tuned_methods_under_their_weights(form: str, context: Context) -> None:
    if form == "lora":
        pytest.importorskip("peft")
    base = tiny_base("llama")
    weights = FullWeights(base) if form == "full" else LoraWeights(base, rank=6)
    settings = FitSettings(learning_rate=1e-2 if form == "full" else 4e-2, max_epochs=25, batch_size=3)
    method = ContinualPretraining(weights, WORDING, settings=settings)
    state = method.take_in(context)
    read = [base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in context.documents]
    with weights.applied(state.values):
        expected = slow_losses(base, [*TEXTS, *read])
    assert isinstance(method, PredictsText)
    check(method.text_losses(state, [*TEXTS, *read]), expected)
    before = text_losses(base, read)
    assert all(after < 0.7 * loss for (after, _), (loss, _) in zip(expected[len(TEXTS) :], before, strict=True))
    check(before, slow_losses(base, read))  # the base model has its own weights again


@pytest.mark.parametrize("own", [PromptConfig(), PromptConfig(question="Ask {question} Say", end="\n")])
@pytest.mark.parametrize("task_wording", [False, True])
def test_no_adapter_differs_from_the_adapter_in_nothing_else(
    own: PromptConfig, task_wording: bool, tmp_path, context, queries
) -> None:
    base = tiny_base("llama")
    checkpoint = tiny_checkpoint(base, prompt=own)
    path = tmp_path / "generator.safetensors"
    save_generator(path, checkpoint)
    method = build(base, MethodSettings(WORDING, generator=path, task_wording=task_wording))
    adapted = GenerativeAdapterMethod(GenerativeAdapter(base, checkpoint), task_wording=task_wording)
    answers = method.answer(method.take_in(context), queries, WORDING, 9)
    state = adapted.take_in(context)
    under_zero = type(state)(state.memory, zeroed(state.adapter), 0.0)
    expected = adapted.answer(under_zero, queries, WORDING, 9)
    assert [(a.text, a.num_prompt_tokens, a.num_new_tokens) for a in answers] == [
        (a.text, a.num_prompt_tokens, a.num_new_tokens) for a in expected
    ]
    changed = adapted.answer(state, queries, WORDING, 9)
    assert [a.text for a in answers] != [a.text for a in changed]
    closed = ClosedBook(base).answer(None, queries, WORDING, 9)
    same = [a.num_prompt_tokens for a in closed] == [a.num_prompt_tokens for a in answers]
    assert same == task_wording
    costs = method.costs(None, answers)
    assert costs.answering_flops > 0 and costs.stored_floats == costs.contextualizing_flops == 0


def zeroed(adapter: LowRankAdapter) -> LowRankAdapter:
    return LowRankAdapter({name: type(f)(f.down, torch.zeros_like(f.up)) for name, f in adapter.items()})


def test_perplexity_of_a_uniform_model(tiny_llama_base: BaseModel) -> None:
    """With all logits equal every token costs log of the vocabulary's size, whatever the text."""
    head = tiny_llama_base.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    try:
        method: Method = ClosedBook(tiny_llama_base)
        assert isinstance(method, PredictsText)
        [(loss, number)] = method.text_losses(None, [TEXTS[0]])
    finally:
        hook.remove()
    assert (loss, number) == (pytest.approx(12 * math.log(263), rel=1e-6), 12)
    assert method.answer(None, [Query("Who?")], WORDING, 1)
