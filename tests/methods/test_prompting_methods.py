"""Closed-book, full context and generated adapters: answers against slow ones, costs against torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.config import MEMORY_DTYPES, PromptConfig
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import ConfigError, EmptyContextError
from generative_adapter.generator.memory import ContextMemory
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.closed_book import ClosedBook
from generative_adapter.methods.full_context import FullContext, FullContextCached
from generative_adapter.methods.generative_adapter import GenerativeAdapterMethod
from generative_adapter.methods.prompting import prompt_ids
from generative_adapter.methods.protocol import Answer, Context, Method, Query, Wording
from tiny_models import HEAD_DIM, KV_HEADS, LAYERS, tiny_base, tiny_checkpoint, tiny_config

NEW = 9


def said(answers: list[Answer]) -> list[tuple[str, int]]:
    return [(answer.text, answer.num_new_tokens) for answer in answers]


def read(answers: list[Answer]) -> list[int]:
    return [answer.num_prompt_tokens + answer.num_cached_tokens for answer in answers]


def test_full_context_with_and_without_a_cache(family_base: BaseModel, context, wording: Wording, queries) -> None:
    plain, cached = FullContext(family_base), FullContextCached(family_base, wording)
    state = cached.take_in(context)
    expected = plain.answer(plain.take_in(context), queries, wording, NEW)
    for _ in range(2):  # a state isn't changed by answering
        found = cached.answer(state, queries, wording, NEW)
        assert said(found) == said(expected) and read(found) == read(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.option_scores == pytest.approx(other.option_scores, abs=2e-4)
    length = len(state.cached.ids)
    assert {answer.num_cached_tokens for answer in found} == {length} and length > len(context.text)
    assert {answer.num_cached_tokens for answer in expected} == {0}
    alone = [plain.answer(context.text, [query], wording, NEW)[0] for query in queries]
    assert said(alone) == said(expected)


def test_a_cut_context_is_the_same_with_a_cache(tiny_llama_base: BaseModel, wording: Wording, queries) -> None:
    context = Context("Nothing of this is read. " * 9 + "The end.")
    settings = {"max_prompt_tokens": 220, "reserve_tokens": 60}
    plain = FullContext(tiny_llama_base, **settings)
    cached = FullContextCached(tiny_llama_base, wording, **settings)
    state = cached.take_in(context)
    expected = plain.answer(plain.take_in(context), queries, wording, NEW)
    found = cached.answer(state, queries, wording, NEW)
    assert said(found) == said(expected) and max(read(expected)) <= 220 - NEW
    assert all(answer.num_cached_tokens == len(state.cached.ids) for answer in found)
    long = [Query("Why? " * 15)]  # it needs more than the reserve, so more of the context goes
    [one], [other] = cached.answer(state, long, wording, NEW), plain.answer(context.text, long, wording, NEW)
    assert (one.text, one.num_cached_tokens, one.num_prompt_tokens) == (other.text, 0, other.num_prompt_tokens)
    with pytest.raises(ConfigError, match="no room for a context"):
        plain.answer(context.text, [Query("Why? " * 50)], wording, NEW)


def test_another_wording_does_without_the_cache(tiny_llama_base: BaseModel, context, queries) -> None:
    first = Wording("first", "{question}", "Read: {context} {question}", chat=False)
    other = dataclasses.replace(first, open="Now {context} {question}")
    cached, plain = FullContextCached(tiny_llama_base, first), FullContext(tiny_llama_base)
    found = cached.answer(cached.take_in(context), queries, other, NEW)
    assert said(found) == said(plain.answer(context.text, queries, other, NEW))
    assert [answer.num_cached_tokens for answer in found] == [0] * len(queries)


def test_batches_do_not_change_answers(tiny_llama_base: BaseModel, context, wording: Wording, queries) -> None:
    expected = FullContext(tiny_llama_base).answer(context.text, queries, wording, NEW)
    for batching in (Batching(max_rows=1), Batching(max_rows=3), Batching(max_tokens=1)):
        assert said(
            FullContext(tiny_llama_base, batching=batching).answer(context.text, queries, wording, NEW)
        ) == said(expected)
    prompts = [[1] * n for n in (5, 9, 3, 9, 2)]
    assert list(Batching(max_rows=2).batches(prompts, range(5))) == [[1, 3], [0, 2], [4]]
    assert list(Batching(max_tokens=11).batches(prompts, range(5))) == [[1], [3], [0, 2], [4]]
    with pytest.raises(ConfigError, match="max_rows"):
        Batching(max_rows=0)


def test_closed_book_does_not_see_the_context(tiny_llama_base: BaseModel, context, wording: Wording, queries) -> None:
    method = ClosedBook(tiny_llama_base)
    answers = method.answer(method.take_in(context), queries, wording, NEW)
    assert said(answers) == said(method.answer(method.take_in(Context("Something else.")), queries, wording, NEW))
    expected = [len(prompt_ids(tiny_llama_base.tokenizer, wording, query.question)) for query in queries]
    assert read(answers) == expected
    costs = method.costs(None, answers)
    assert costs.answering_flops > 0 and costs.stored_floats == costs.stored_bytes == costs.contextualizing_flops == 0


def test_the_likeliest_option_is_chosen(tiny_llama_base: BaseModel, wording: Wording) -> None:
    query = Query("Who?", ("Ada", "Bo", "nobody at all"))
    [answer] = ClosedBook(tiny_llama_base).answer(None, [query], wording, NEW)
    assert (
        len(answer.option_scores) == 3
        and answer.text == query.options[answer.option_scores.index(max(answer.option_scores))]
    )
    [turned] = ClosedBook(tiny_llama_base).answer(None, [Query("Who?", query.options[::-1])], wording, NEW)
    assert turned.text == answer.text


def test_adapter_answers_are_those_of_the_contextualizer(tiny_adapter: GenerativeAdapter, context, queries) -> None:
    method = GenerativeAdapterMethod(tiny_adapter)
    state = method.take_in(context)
    asked = [query for query in queries if not query.options]
    wording = Wording("unused", "X {question}", "X {context} {question}", chat=False)
    memory = tiny_adapter.contextualize(context.text)
    expected = tiny_adapter.answer([query.question for query in asked], memory, max_new_tokens=NEW)
    found = method.answer(state, asked, wording, NEW)
    assert said(found) == [(answer.text, answer.num_generated_tokens) for answer in expected]
    plain = tiny_adapter.answer([query.question for query in asked], max_new_tokens=NEW)
    assert [answer.text for answer in found] != [answer.text for answer in plain]
    with inject(tiny_adapter.base.model, tiny_adapter.adapter(memory)):
        scored = ClosedBook(tiny_adapter.base).answer(None, queries, wording, NEW)
    own = GenerativeAdapterMethod(tiny_adapter, task_wording=True).answer(state, queries, wording, NEW)
    assert said(own) == said(scored)
    assert own[1].option_scores == pytest.approx(scored[1].option_scores, abs=2e-4)
    with pytest.raises(EmptyContextError):
        method.take_in(Context(" \n"))


@pytest.mark.parametrize("form", MEMORY_DTYPES)
def test_adapters_can_be_made_of_stored_memories(tiny_adapter: GenerativeAdapter, context, tmp_path, form: str) -> None:
    adapter = GenerativeAdapterMethod(tiny_adapter, memory_dtype=form).take_in(context).adapter
    tiny_adapter.contextualize(context.text).save(tmp_path / "memory.safetensors", form)
    expected = tiny_adapter.adapter(ContextMemory.load(tmp_path / "memory.safetensors"))
    unstored = GenerativeAdapterMethod(tiny_adapter).take_in(context).adapter
    assert adapter.keys() == expected.keys()
    assert all(torch.equal(adapter[name].up, expected[name].up) for name in adapter)
    assert all(torch.equal(adapter[name].up, unstored[name].up) for name in adapter) == (form == "float64")


def test_answers_end_with_their_line(tiny_llama_base: BaseModel) -> None:
    wording = Wording("bare", "Q: {question}\nA:", "{context} {question}", chat=False)
    newline = tiny_llama_base.tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    head = tiny_llama_base.model.get_output_embeddings()
    asked = [Query("Who naps at noon?")]
    [before] = ClosedBook(tiny_llama_base).answer(None, asked, wording, 1)

    def newline_next(_module, _args, output):
        return output.index_fill(-1, torch.tensor([newline]), 1e4)

    hook = head.register_forward_hook(newline_next)
    try:
        [answer] = ClosedBook(tiny_llama_base).answer(None, asked, wording, NEW)
    finally:
        hook.remove()
    assert (answer.text, answer.num_new_tokens) == ("", 1)
    assert ClosedBook(tiny_llama_base).answer(None, asked, wording, 1) == [
        dataclasses.replace(before, seconds=pytest.approx(0, abs=60))
    ]


def eager_base(family: str) -> BaseModel:
    base = tiny_base(family)
    base.model.set_attn_implementation("eager")  # torch doesn't count its fused kernel on a CPU
    return base


def methods(base: BaseModel, wording: Wording) -> list[Method]:
    config = tiny_config(normalization="newton_schulz", key_windows=(3, -2), window_gates=True, chunk_tokens=97)
    model = GenerativeAdapter(base, tiny_checkpoint(base, config, prompt=PromptConfig()))
    return [
        ClosedBook(base),
        FullContext(base),
        FullContextCached(base, wording),
        GenerativeAdapterMethod(model),
        GenerativeAdapterMethod(model, task_wording=True),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("scored", [True, False])
def test_flops_are_what_torch_counts(family: str, scored: bool, context: Context) -> None:
    base = eager_base(family)
    wording = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:")
    long = Context(" ".join([context.text] * 3))
    query = Query("Who sells kites?", ("Adalbert", "Beatrice", "somebody") if scored else ())
    for method in methods(base, wording):
        with FlopCounterMode(display=False) as taking:
            state = method.take_in(long)
        with FlopCounterMode(display=False) as answering:
            answers = method.answer(state, [query], wording, NEW)
        costs = method.costs(state, answers)
        assert costs.answering_flops == pytest.approx(answering.get_total_flops(), rel=0.02), method.name
        if taking.get_total_flops():
            assert costs.contextualizing_flops == pytest.approx(taking.get_total_flops(), rel=0.02), method.name
            assert costs.contextualizing_seconds > 0
        else:
            assert costs.contextualizing_flops == 0
        mean = method.costs(state, [*answers, *answers]).answering_flops
        assert mean == pytest.approx(costs.answering_flops)
        assert method.costs(state, []).answering_flops == 0


def test_what_is_stored(tiny_llama_base: BaseModel, tiny_adapter: GenerativeAdapter, context, wording) -> None:
    cached = FullContextCached(tiny_llama_base, wording)
    state = cached.take_in(context)
    costs = cached.costs(state, [])
    assert costs.stored_floats == len(state.cached.ids) * LAYERS * 2 * KV_HEADS * HEAD_DIM
    assert costs.stored_bytes == 4 * costs.stored_floats
    method = GenerativeAdapterMethod(tiny_adapter, training_flops=7.0)
    costs = method.costs(method.take_in(context), [])
    config = tiny_adapter.checkpoint.config
    expected = sum(
        config.rank * (target.in_features + target.out_features) for target in tiny_adapter.generator.targets
    )
    assert (costs.stored_floats, costs.stored_bytes, costs.training_flops) == (expected, 4 * expected, 7.0)
    plain = FullContext(tiny_llama_base)
    assert plain.costs(plain.take_in(context), []).stored_floats == 0


def test_no_queries(tiny_llama_base: BaseModel, tiny_adapter: GenerativeAdapter, context, wording) -> None:
    cached = FullContextCached(tiny_llama_base, wording)
    assert cached.answer(cached.take_in(context), [], wording, NEW) == []
    assert ClosedBook(tiny_llama_base).answer(None, [], wording, NEW) == []
