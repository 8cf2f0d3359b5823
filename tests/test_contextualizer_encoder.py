"""Independent chunks: read side by side, in any batch, under the reading adapter; always forgettable."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from generative_adapter.base_model import reading
from generative_adapter.base_model.inject import merge
from generative_adapter.base_model.text_blocks import block_chunks
from generative_adapter.checkpoint import named_weights
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import DataError, EmptyContextError, FingerprintMismatchError
from generative_adapter.generator.memory import ContextMemory
from tiny_models import BEGIN, tiny_base, tiny_checkpoint, tiny_encoder_config, tiny_tokenizer

FIRST = "The badges at Kestrel Point are lilac; Ada Quill keeps them."
SECOND = "Visitors park on the roof, but not on Mondays before nine."
THIRD = "Bo Marsh mends the pumps."
TEXT = f"{FIRST}\n\n{SECOND}\n\n{THIRD}"
CONFIG = tiny_encoder_config(chunk_tokens=60)
QUESTIONS = ("Which colour?", "Who?", "Where do visitors park on Mondays?")


@pytest.fixture
def model(tiny_llama_base) -> GenerativeAdapter:
    return GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, CONFIG))


def close(first: ContextMemory, second: ContextMemory, tolerance: float = 1e-5) -> bool:
    pairs = [(state, second.states[name]) for name, state in first.states.items()]
    return all(bool((a - b).norm() <= tolerance * b.norm()) for a, b in pairs)


@pytest.mark.parametrize("start", [[], [BEGIN]], ids=["plain", "begin"])
@pytest.mark.parametrize("reading_rank", [0, 3])
def test_memory_is_the_sum_over_chunks_in_every_family(family_base, start, reading_rank):
    """Each chunk alone, the reading adapter in the model's weights, and the model's own hidden states."""
    base = dataclasses.replace(family_base, tokenizer=tiny_tokenizer(begin=bool(start)))
    config = tiny_encoder_config({"reading_rank": reading_rank}, chunk_tokens=60)
    adapter = GenerativeAdapter(base, tiny_checkpoint(base, config))
    reading = adapter.generator.reading_adapter
    model = base.model if reading is None else merge(base.model, reading)
    expected = torch.zeros(18, 11, dtype=torch.float64)
    for chunk in block_chunks(base.tokenizer, TEXT, 60):
        with torch.no_grad():
            output = model(input_ids=torch.tensor([start + chunk]), output_hidden_states=True)
            hidden = {layer: output.hidden_states[layer][:, len(start) :] for layer in (0, 1)}
            expected += adapter.generator.write(hidden)["memory"][0]
    memory = adapter.contextualize(TEXT)
    assert (memory.num_chunks, memory.num_tokens) == (3, len(FIRST + SECOND + THIRD))
    torch.testing.assert_close(memory.states["memory"], expected, rtol=0, atol=1e-4 * float(expected.norm()))


def test_the_reading_adapter_counts(model, tiny_llama_base):
    plain = GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, CONFIG))
    with torch.no_grad():
        for name, tensor in plain.generator.named_weights().items():
            if name.endswith("reading_up"):
                tensor.zero_()
    assert not close(model.contextualize(TEXT), plain.contextualize(TEXT), 0.01)


@pytest.mark.parametrize("limit", [1, 61, 120, 10_000])
def test_batches_do_not_matter_but_are_bounded(model, monkeypatch, limit):
    monkeypatch.setattr(reading, "READING_TOKENS", limit)
    widths: list[tuple[int, ...]] = []
    embeddings = model.base.model.get_input_embeddings()
    handle = embeddings.register_forward_pre_hook(lambda _, args: widths.append(tuple(args[0].shape)))
    text = "\n\n".join([FIRST, SECOND, FIRST.upper(), SECOND.upper(), THIRD])
    memory = model.contextualize(text)
    handle.remove()
    assert all(rows * width <= max(limit, 60) for rows, width in widths)
    assert len(widths) == {1: 5, 61: 5, 120: 3, 10_000: 1}[limit]
    monkeypatch.undo()
    parts = [model.contextualize(part) for part in (FIRST, SECOND, FIRST.upper(), SECOND.upper(), THIRD)]
    assert close(memory, parts[0] + parts[1] + parts[2] + parts[3] + parts[4])


def test_order_does_not_matter(model):
    assert close(model.contextualize(f"{SECOND}\n\n{FIRST}"), model.contextualize(f"{FIRST}\n\n{SECOND}"), 1e-6)


def test_nothing_is_streamed(model):
    first = model.contextualize(FIRST, name="badges")
    both = model.contextualize(SECOND, first, name="parking")
    added = first + model.contextualize(SECOND, name="parking")
    assert torch.equal(both.states["memory"], added.states["memory"]) and both.documents == added.documents
    assert [document.streamed for document in both.documents] == [False, False]
    left = model.forget(both, FIRST)
    assert [document.name for document in left.documents] == ["parking"]
    assert close(left, model.contextualize(SECOND), 1e-12)
    assert model.answer(QUESTIONS, left) == model.answer(QUESTIONS, model.contextualize(SECOND))
    nothing = model.forget(left, SECOND)
    assert not nothing.states["memory"].any() and nothing.documents == ()
    assert not any(factors.delta().any() for factors in model.adapter(nothing).values())
    with pytest.raises(DataError, match="does not hold"):
        model.forget(left, FIRST)


def test_memory_of_no_context_changes_nothing(model):
    assert not any(factors.delta().any() for factors in model.adapter(model.empty_memory()).values())
    assert model.answer(QUESTIONS, model.empty_memory()) == model.answer(QUESTIONS)
    told = model.adapter(model.contextualize(TEXT))
    assert all(factors.delta().any() for factors in told.values())
    assert {name: factors.rank for name, factors in told.items()} == {
        "model.layers.0.self_attn.o_proj": 7,
        "model.layers.0.mlp.down_proj": 7,
        "model.layers.1.self_attn.o_proj": 9,
        "model.layers.1.mlp.down_proj": 9,
    }


def test_answers_under_several_memories(model):
    memories = [model.contextualize(text) for text in (FIRST, SECOND, TEXT)]
    together = model.answer(QUESTIONS, memories, max_new_tokens=6)
    alone = [model.answer([q], memory, max_new_tokens=6)[0] for q, memory in zip(QUESTIONS, memories, strict=True)]
    assert together == alone


def test_progress_is_told_chunk_by_chunk(model):
    calls: list[tuple[int, int]] = []
    memory = model.contextualize(TEXT, name="notes", progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    (document,) = memory.documents
    assert (document.name, document.num_chunks) == ("notes", 3)


def test_the_same_input_gives_the_same_bits(model):
    first, second = model.contextualize(TEXT), model.contextualize(TEXT)
    assert torch.equal(first.states["memory"], second.states["memory"])
    assert first.states["memory"].dtype == torch.float64


def test_memories_pass_through_files(model, tmp_path):
    memory = model.contextualize(TEXT)
    memory.save(tmp_path / "memory.safetensors")
    read = ContextMemory.load(tmp_path / "memory.safetensors", model.generator_fingerprint)
    assert close(read, memory, 0.01) and read.documents == memory.documents


def test_bfloat16_base():
    exact, rounded = tiny_base(), tiny_base()
    rounded.model.bfloat16()
    memory = GenerativeAdapter(rounded, tiny_checkpoint(rounded, CONFIG)).contextualize(TEXT)
    assert close(memory, GenerativeAdapter(exact, tiny_checkpoint(exact, CONFIG)).contextualize(TEXT), 0.05)


def test_what_is_refused(model, tiny_llama_base):
    stranger = GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, CONFIG, seed=4))
    with pytest.raises(FingerprintMismatchError):
        model.contextualize(TEXT, stranger.contextualize(TEXT))
    with pytest.raises(EmptyContextError):
        model.contextualize(" \n\n ", model.contextualize(TEXT))


def test_the_base_model_is_left_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in named_weights(model.generator).items()}
    ids = torch.tensor([[20, 30, 40]])
    expected = model.base.model(ids).logits
    model.contextualize(TEXT)
    assert torch.equal(model.base.model(ids).logits, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_weights(model.generator).items())
