"""Text -> chunks -> memory -> adapter: reading, adding and forgetting, for every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generative_adapter.base_model.inject import merge
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import DataError, EmptyContextError, FingerprintMismatchError
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.generator.memory import ContextMemory
from tiny_models import BEGIN, tiny_base, tiny_checkpoint, tiny_config, tiny_tokenizer

TEXT = "The badges at Kestrel Point are lilac; Ada Quill keeps them."  # 60 bytes: 5 chunks of at most 13 tokens
OTHER = "Visitors park on the roof, but not on Mondays before nine."
QUESTIONS = ("Which colour?", "Who?", "Where do visitors park on Mondays?")


@pytest.fixture
def stranger(tiny_llama_base) -> ContextMemory:
    """A memory that another generator of the same form wrote, with the same base model."""
    return GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, seed=4)).contextualize(TEXT)


def same_states(first: ContextMemory, second: ContextMemory) -> bool:
    return first.states.keys() == second.states.keys() and all(
        torch.equal(state, second.states[name]) for name, state in first.states.items()
    )


def distance(first: ContextMemory, second: ContextMemory) -> float:
    """The largest relative difference of any target's state."""
    return max(float((s - second.states[n]).norm() / second.states[n].norm()) for n, s in first.states.items())


def same_factors(first: LowRankAdapter, second: LowRankAdapter) -> bool:
    return all(torch.equal(f.up, second[n].up) and torch.equal(f.down, second[n].down) for n, f in first.items())


# Every family


@pytest.mark.parametrize("start", [[], [BEGIN]], ids=["plain", "begin"])
def test_memory_is_the_sum_over_chunks_in_every_family(family_base, start):
    """Eq. (3) with weights that were changed for good, and the model's own hidden states."""
    base = dataclasses.replace(family_base, tokenizer=tiny_tokenizer(begin=bool(start)))
    adapter = GenerativeAdapter(base, tiny_checkpoint(base))
    ids = base.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    expected = {name: torch.zeros(7, 7, dtype=torch.float64) for name in adapter.empty_memory().states}
    for at in range(0, len(ids), 13):
        model = merge(base.model, adapter.generator.adapter(expected)) if at else base.model
        with torch.no_grad():
            output = model(input_ids=torch.tensor([start + ids[at : at + 13]]), output_hidden_states=True)
        for target in adapter.generator.targets:
            parts = adapter.generator[target.name]
            for hidden in output.hidden_states[target.layer][0, len(start) :]:
                hidden = hidden / (hidden.square().mean() + 1e-6).sqrt() * parts.norm_weight
                update = torch.outer(parts.value_proj @ hidden, parts.key_proj @ hidden)
                expected[target.name] = expected[target.name] + update
    memory = adapter.contextualize(TEXT)
    assert memory.num_chunks == 5
    for name, state in expected.items():
        torch.testing.assert_close(memory.states[name], state, rtol=0, atol=2e-4 * float(state.norm()))


def test_bfloat16_of_every_family(family):
    exact, rounded = tiny_base(family), tiny_base(family)
    rounded.model.bfloat16()
    config = tiny_config(normalization="newton_schulz")
    exact_adapter = GenerativeAdapter(exact, tiny_checkpoint(exact, config))
    adapter = GenerativeAdapter(rounded, tiny_checkpoint(rounded, config))
    assert adapter.base.dtype == torch.bfloat16
    memory = adapter.contextualize(TEXT[:13])
    assert same_states(memory, adapter.contextualize(TEXT[:13]))
    assert {state.dtype for state in memory.states.values()} == {torch.float64}
    assert distance(memory, exact_adapter.contextualize(TEXT[:13])) < 0.05
    assert len(adapter.answer(QUESTIONS, memory, max_new_tokens=5)) == 3


# Reading


def test_same_input_gives_the_same_bits(tiny_adapter):
    first, second = tiny_adapter.contextualize(TEXT), tiny_adapter.contextualize(TEXT)
    assert same_states(first, second)
    assert same_factors(tiny_adapter.adapter(first), tiny_adapter.adapter(second))
    assert not same_states(first, tiny_adapter.contextualize(OTHER))


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("normalization", ["svd", "newton_schulz"])
def test_streaming_equals_one_call_bit_for_bit(begin, normalization):
    base = tiny_base(begin=begin)
    adapter = GenerativeAdapter(base, tiny_checkpoint(base, tiny_config(normalization=normalization, value_shift=1)))
    whole = adapter.contextualize(TEXT)
    streamed = None
    for start in range(0, len(TEXT), 13):
        before = streamed
        copies = {name: state.clone() for name, state in before.states.items()} if before else {}
        streamed = adapter.contextualize(TEXT[start : start + 13], before)
        assert all(torch.equal(state, before.states[name]) for name, state in copies.items())
    assert same_states(whole, streamed)
    assert same_factors(adapter.adapter(whole), adapter.adapter(streamed))
    assert (streamed.num_tokens, streamed.num_chunks) == (whole.num_tokens, whole.num_chunks) == (60, 5)
    assert [document.streamed for document in streamed.documents] == [False, True, True, True, True]
    assert [document.streamed for document in whole.documents] == [False]


@pytest.mark.parametrize("begin", [False, True])
def test_a_chunk_costs_the_same_however_much_came_before(begin):
    base = tiny_base(begin=begin)
    adapter = GenerativeAdapter(base, tiny_checkpoint(base))
    seen: list[Tensor] = []
    base.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    memory, sizes = None, set()
    for _ in range(6):
        memory = adapter.contextualize(TEXT[:13], memory)
        sizes.add((memory.num_bytes, adapter.adapter(memory).num_parameters))
    start = [BEGIN] if begin else []
    expected = [[*start, *base.tokenizer(TEXT[:13], add_special_tokens=False)["input_ids"]]]
    assert [ids.tolist() for ids in seen] == [expected] * 6
    assert len(sizes) == 1
    assert memory.num_tokens == 6 * 13


def test_progress_and_names(tiny_adapter):
    calls: list[tuple[int, int]] = []
    memory = tiny_adapter.contextualize(TEXT, name="badges.txt", progress=lambda *call: calls.append(call))
    assert calls == [(number, 5) for number in range(1, 6)]
    (document,) = memory.documents
    assert (document.name, document.num_tokens, document.num_chunks) == ("badges.txt", 60, 5)
    assert tiny_adapter.contextualize(TEXT).documents[0].name == f"text-{document.sha256[:8]}"


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_empty_context(tiny_adapter, text):
    for memory in (None, tiny_adapter.contextualize(TEXT)):
        with pytest.raises(EmptyContextError):
            tiny_adapter.contextualize(text, memory)


def test_one_token_and_fewer_tokens_than_the_rank(tiny_adapter):
    for length in (1, 3):
        memory = tiny_adapter.contextualize(TEXT[:length])
        factors = tiny_adapter.adapter(memory)
        assert memory.num_tokens == length
        for part in factors.values():
            assert torch.linalg.matrix_rank(part.delta()) == length


def test_memory_of_no_context_changes_nothing(tiny_adapter):
    empty = tiny_adapter.empty_memory()
    assert all(not factors.delta().any() for factors in tiny_adapter.adapter(empty).values())
    assert same_states(tiny_adapter.contextualize(TEXT, empty), tiny_adapter.contextualize(TEXT))
    assert not tiny_adapter.contextualize(TEXT, empty).documents[0].streamed


# Adding and forgetting


def test_a_forgotten_document_was_never_read(tiny_adapter):
    first, second, third = (tiny_adapter.contextualize(text) for text in (TEXT, OTHER, TEXT + OTHER))
    both = first + third
    memory = tiny_adapter.forget(first + second + third, OTHER)
    assert distance(memory, both) < 2e-6
    assert memory.documents == both.documents
    for name, factors in tiny_adapter.adapter(memory).items():
        expected = tiny_adapter.adapter(both)[name].delta()
        torch.testing.assert_close(factors.delta(), expected, rtol=0, atol=1e-4 * float(expected.norm()))
    assert tiny_adapter.answer(QUESTIONS, memory) == tiny_adapter.answer(QUESTIONS, both)
    nothing = tiny_adapter.forget(tiny_adapter.forget(memory, TEXT), TEXT + OTHER)
    assert same_states(nothing, tiny_adapter.empty_memory())
    assert nothing.num_tokens == 0


def test_forgetting_what_is_not_held(tiny_adapter):
    with pytest.raises(DataError, match=r"does not hold .* it holds 'badges'"):
        tiny_adapter.forget(tiny_adapter.contextualize(TEXT, name="badges"), OTHER)
    with pytest.raises(EmptyContextError):
        tiny_adapter.forget(tiny_adapter.contextualize(TEXT), " ")


def test_forgetting_part_of_a_stream(tiny_adapter):
    streamed = tiny_adapter.contextualize(OTHER, tiny_adapter.contextualize(TEXT))
    for text in (TEXT, OTHER):
        with pytest.raises(DataError, match="read as part of a stream"):
            tiny_adapter.forget(streamed, text)


def test_memory_of_another_generator_is_refused_everywhere(tiny_adapter, stranger, tmp_path):
    own = tiny_adapter.contextualize(TEXT)
    stranger.save(tmp_path / "memory.safetensors")
    attempts: list[Callable[[], object]] = [
        lambda: tiny_adapter.contextualize(OTHER, stranger),
        lambda: tiny_adapter.contextualize(TEXT[:9], stranger - stranger),  # of no documents, but still a stranger's
        lambda: tiny_adapter.forget(stranger, TEXT),
        lambda: tiny_adapter.adapter(stranger),
        lambda: tiny_adapter.merged(stranger),
        lambda: tiny_adapter.generate("Who?", stranger),
        lambda: tiny_adapter.answer(["Who?"], stranger),
        lambda: tiny_adapter.answer(["Who?", "Who?"], [own, stranger]),
        lambda: tiny_adapter.chat([{"role": "user", "content": "Who?"}], stranger),
        lambda: own + stranger,
        lambda: own - stranger,
        lambda: ContextMemory.load(tmp_path / "memory.safetensors", tiny_adapter.generator_fingerprint),
    ]
    for attempt in attempts:
        with pytest.raises(FingerprintMismatchError, match=stranger.generator_fingerprint):
            attempt()
    with pytest.raises(
        FingerprintMismatchError, match=f"^the memory was written by generator {stranger.generator_fingerprint}"
    ):
        tiny_adapter.forget(stranger, " ")  # before the text is read


def test_settings_are_part_of_what_makes_a_generator(tiny_llama_base):
    plain, scaled = (
        GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, tiny_config(scale=scale)))
        for scale in (0.5, 0.25)
    )
    with pytest.raises(FingerprintMismatchError):
        scaled.adapter(plain.contextualize(TEXT))
