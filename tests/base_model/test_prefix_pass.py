"""One parallel pass equals reading chunk by chunk: for every family against the adapters that inference makes, and
with gradients against a slow sequential implementation that changes the weights themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.grouped_attention import register_grouped_attention
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import (
    attention_kernel,
    prefix_logits,
    read_first_chunks,
    segment_positions,
)
from generative_adapter.config import NORMALIZATIONS
from generative_adapter.errors import BaseModelError
from generative_adapter.generator.generator import AdapterGenerator
from slow_reading import CHUNK_LENGTHS, Layout, inference_reader, make_layout, one_by_one, pad_rows, slow_reader
from tiny_models import BEGIN, VOCABULARY, randomize, tiny_base, tiny_config


def parallel(model: nn.Module, generator: AdapterGenerator, layout: Layout) -> Tensor:
    skipped = layout.rows.num_start_tokens
    first = [read_first_chunks(model, generator.layers, ids, segments, skipped) for ids, segments in layout.first]
    logits, weights = prefix_logits(model, generator, first, layout.rows, layout.membership)
    assert weights is None
    return logits


def random_generator(base: BaseModel, seed: int = 3, **settings: object) -> AdapterGenerator:
    return randomize(build_generator(tiny_config(**settings), base), seed)


@pytest.mark.parametrize("start", [(), (BEGIN,)], ids=["plain", "begin"])
def test_equals_reading_chunk_by_chunk_in_every_family(family_base, start):
    generator = random_generator(family_base, value_shift=1, key_windows=(3, -2))
    layout = make_layout(start=start)
    with torch.no_grad():
        actual = parallel(family_base.model, generator, layout)
    expected = one_by_one(layout, inference_reader(family_base.model, generator, start))
    plain = one_by_one(layout, inference_reader(family_base.model, random_generator(family_base, scale=1e-9), start))
    assert (expected - plain).abs().max() > 0.3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "grouped"])
@pytest.mark.parametrize("start", [(), (BEGIN,)], ids=["plain", "begin"])
@pytest.mark.parametrize("value_shift", [0, 1, 3])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equals_reading_chunk_by_chunk(normalization, value_shift, start, attention):
    base = tiny_base("llama")
    register_grouped_attention()
    base.model.set_attn_implementation(attention)
    generator = random_generator(base, normalization=normalization, value_shift=value_shift)
    layout = make_layout(start=start)
    with torch.no_grad():
        actual = parallel(base.model, generator, layout)
    expected = one_by_one(layout, inference_reader(base.model, generator, start))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("value_layer", "layers"), [(0, None), (0, (1,)), (1, (1,))])
def test_values_of_another_block(family, value_layer, layers):
    base = tiny_base(family)
    generator = random_generator(base, value_layer=value_layer, layers=layers, value_shift=1)
    layout = make_layout(start=(BEGIN,))
    with torch.no_grad():
        actual = parallel(base.model, generator, layout)
    expected = one_by_one(layout, inference_reader(base.model, generator, (BEGIN,)))
    own = one_by_one(
        layout, inference_reader(base.model, random_generator(base, layers=layers, value_shift=1), (BEGIN,))
    )
    assert (expected - own).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("normalization", ["svd", "newton_schulz"])
def test_chunks_shorter_than_the_rank(tiny_llama_base, normalization):
    generator = random_generator(tiny_llama_base, normalization=normalization, value_shift=1)
    layout = make_layout(lengths=((1,), (2, 1), (3, 1, 1)), start=(BEGIN,))
    with torch.no_grad():
        actual = parallel(tiny_llama_base.model, generator, layout)
    expected = one_by_one(layout, inference_reader(tiny_llama_base.model, generator, (BEGIN,)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


def test_targets_of_one_block_only(tiny_llama_base):
    generator = random_generator(tiny_llama_base, targets=("down_proj", "v_proj"), layers=(1,))
    layout = make_layout()
    with torch.no_grad():
        actual = parallel(tiny_llama_base.model, generator, layout)
    expected = one_by_one(layout, inference_reader(tiny_llama_base.model, generator, ()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_contexts_of_one_chunk(tiny_llama_base):
    """Nothing is written in the pass itself: all states are normalised at once."""
    generator = random_generator(tiny_llama_base)
    layout = make_layout(lengths=((11,), (9,), (8,)))
    assert not len(layout.rows.writers)
    with torch.no_grad():
        actual = parallel(tiny_llama_base.model, generator, layout)
    expected = one_by_one(layout, inference_reader(tiny_llama_base.model, generator, ()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family_name", ["mistral", "gemma3_text"])
def test_windows_with_another_attention_kernel(family_name):
    base = tiny_base(family_name)
    generator = random_generator(base)
    layout = make_layout(start=(BEGIN,))
    with torch.no_grad(), attention_kernel(base.model, "eager"):
        assert base.model.config._attn_implementation == "eager"
        actual = parallel(base.model, generator, layout)
    assert base.model.config._attn_implementation == "sdpa"
    expected = one_by_one(layout, inference_reader(base.model, generator, (BEGIN,)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_attention_kernel_is_restored_after_an_exception(tiny_llama_base):
    model = tiny_llama_base.model
    with pytest.raises(RuntimeError, match="stop"), attention_kernel(model, "eager"):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    with attention_kernel(model, None):
        assert model.config._attn_implementation == "sdpa"


def test_bfloat16(family):
    base = tiny_base(family)
    generator = random_generator(base, normalization="newton_schulz")
    layout = make_layout(lengths=((11,), (12, 9)))
    with torch.no_grad():
        exact = parallel(base.model, generator, layout)
        rounded = parallel(base.model.bfloat16(), generator, layout)
    assert rounded.dtype == torch.bfloat16
    assert torch.linalg.norm(rounded.float() - exact) < 0.2 * torch.linalg.norm(exact)


@pytest.mark.parametrize(
    ("family_name", "settings", "start", "lengths"),
    [
        *[
            ("llama", {"normalization": name, "value_shift": shift}, (), CHUNK_LENGTHS)
            for name in NORMALIZATIONS
            for shift in (0, 1)
        ],
        ("llama", {"normalization": "svd"}, (), ((11,), (9,))),
        ("llama", {"normalization": "ridge", "value_shift": 1, "value_layer": 0}, (BEGIN,), CHUNK_LENGTHS),
        ("gpt2", {"normalization": "svd", "value_shift": 1, "key_windows": (2, -3)}, (BEGIN,), CHUNK_LENGTHS),
        ("gemma3_text", {"value_shift": 1, "key_windows": (4, 16, -8)}, (BEGIN,), CHUNK_LENGTHS),
        ("mistral", {}, (BEGIN,), CHUNK_LENGTHS),
    ],
)
def test_gradients_equal_those_of_the_slow_way(family_name, settings, start, lengths):
    base = tiny_base(family_name)
    generator = random_generator(base, **{"normalization": "newton_schulz", **settings})
    layout = make_layout(lengths=lengths, start=start)
    slow = one_by_one(layout, slow_reader(base.model, generator, start))
    weights = torch.randn(slow.shape, generator=torch.Generator().manual_seed(9)) / slow.numel() ** 0.5
    names, parameters = zip(*generator.named_parameters(), strict=True)
    expected = torch.autograd.grad((slow * weights).sum(), parameters)
    logits = parallel(base.model, generator, layout)
    actual = torch.autograd.grad((logits * weights).sum(), parameters)
    # Newton-Schulz blows rounding up, by how much depends on the processor: logits off by 3e-4, gradients by 1.2 %.
    rough = settings.get("normalization", "newton_schulz") == "newton_schulz"
    torch.testing.assert_close(logits, slow, rtol=0, atol=5e-4 if rough else 1e-4)
    for name, got, wanted in zip(names, actual, expected, strict=True):
        assert wanted.norm() > 0, name
        assert (got - wanted).norm() < (0.02 if rough else 3e-3) * wanted.norm(), name


def test_first_chunks_come_back_row_by_row(family_base):
    """Chunks that share a row, one token among them, are captured as if each were alone."""
    chunks = [[BEGIN, *range(20, 29)], [BEGIN, 40], [BEGIN, *range(60, 67)]]
    ids, segments = pad_rows([chunks[:2], chunks[2:]])
    first = read_first_chunks(family_base.model, (0, 1), ids, segments, num_start_tokens=1)
    assert first.mask.sum(1).tolist() == [9, 1, 7]
    for number, chunk in enumerate(chunks):
        alone = capture_block_inputs(family_base.model, (0, 1), torch.tensor([chunk]))
        for layer in (0, 1):
            kept = first.hidden[layer][number][first.mask[number]]
            torch.testing.assert_close(kept, alone[layer][0, 1:], rtol=0, atol=3e-6)


def test_nothing_stays_behind_after_an_exception(tiny_llama_base):
    model = tiny_llama_base.model
    generator = random_generator(tiny_llama_base)
    layout = make_layout()
    ids = torch.arange(10, 20).unsqueeze(0)
    before = model(input_ids=ids).logits
    layout.rows.input_ids[0, 0] = VOCABULARY + 1
    with pytest.raises(IndexError):
        parallel(model, generator, layout)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=ids).logits, before)


def test_positions_restart_with_each_segment():
    segments = torch.tensor([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    assert segment_positions(segments).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_model_without_a_head():
    base = tiny_base("llama")
    generator = random_generator(base)
    layout = make_layout(lengths=((9,),))
    first = [read_first_chunks(base.model, generator.layers, *group) for group in layout.first]
    base.model.get_output_embeddings = lambda: None
    with pytest.raises(BaseModelError, match="LlamaForCausalLM has no output embeddings"):
        prefix_logits(base.model, generator, first, layout.rows, layout.membership)
