"""Costs of every method against torch's own counter: what is taken in, what is answered, generated and scored.

One row a batch and rows of one length, so that padding plays no part, but where a test is about it.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.config import PromptConfig
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.closed_book import ClosedBook
from generative_adapter.methods.continual_pretraining import ContinualPretraining
from generative_adapter.methods.fine_tuning import SupervisedFineTuning
from generative_adapter.methods.fitting import FitSettings
from generative_adapter.methods.full_context import FullContext, FullContextCached
from generative_adapter.methods.generative_adapter import GenerativeAdapterMethod
from generative_adapter.methods.k_shot import KShotFineTuning
from generative_adapter.methods.no_adapter import NoAdapter
from generative_adapter.methods.protocol import Answer, Context, Costs, Method, Query, Wording
from generative_adapter.methods.registry import METHODS
from generative_adapter.methods.tuned_weights import FullWeights, LoraWeights, TunedWeights
from tiny_models import tiny_base, tiny_checkpoint, tiny_config, tiny_encoder_config

NEW = 7
WORDING = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:", chat=False)
PAIRS = (("Who keeps bees in Ulm?", "Ada"), ("Who sells red kites now?", "Beo"), ("Who naps at noon?", "Cyd"))
DOCUMENTS = ("Ada keeps bees in Ulm, and two goats.", "Beo sells red kites, never green ones.")
CONTEXT = Context("\n".join(DOCUMENTS * 3), DOCUMENTS, PAIRS)
QUERIES = {
    "generated": Query("Who keeps bees, and where are they kept?"),
    "scored": Query("Who keeps bees, and where are they kept?", ("Adalbert", "Beatrice", "somebody")),
}
FEW = FitSettings(learning_rate=1e-3, max_epochs=1, batch_size=1)


def eager_base(family: str) -> BaseModel:
    base = tiny_base(family)
    base.model.set_attn_implementation("eager")  # torch doesn't count its fused kernel on a CPU
    return base


def build(name: str, base: BaseModel) -> Method:
    """The method of that name, with few epochs and one sample a step."""
    if name == "closed-book":
        return ClosedBook(base)
    if name == "full-context":
        return FullContext(base)
    if name == "full-context-cached":
        return FullContextCached(base, WORDING)
    if name == "no-adapter":
        return NoAdapter(base, PromptConfig())
    if name == "generative-adapter":
        return adapter_method(base)
    form = name.rpartition("-")[2]
    if form == "lora":
        pytest.importorskip("peft")
    weights: TunedWeights = FullWeights(base) if form == "full" else LoraWeights(base, rank=5)
    if name.startswith("k-shot"):
        return KShotFineTuning(weights, WORDING, settings=FEW)
    sft = SupervisedFineTuning(weights, PAIRS, WORDING, validation=PAIRS[:1], settings=FEW)
    return sft if name.startswith("sft") else ContinualPretraining(weights, WORDING, sft=sft, settings=FEW)


def adapter_method(base: BaseModel, **settings) -> GenerativeAdapterMethod:
    config = tiny_config(**{"normalization": "newton_schulz", "chunk_tokens": 61, **settings})
    return GenerativeAdapterMethod(GenerativeAdapter(base, tiny_checkpoint(base, config, prompt=PromptConfig())))


def counted(method: Method, queries: list[Query]) -> tuple[int, int, list[Answer], Costs]:
    """Operations of taking in and of answering, as torch counts them; the answers, and the method's own costs."""
    with FlopCounterMode(display=False) as taking:
        state = method.take_in(CONTEXT)
    with FlopCounterMode(display=False) as answering:
        answers = method.answer(state, queries, WORDING, NEW)
    return taking.get_total_flops(), answering.get_total_flops(), answers, method.costs(state, answers)


@pytest.mark.parametrize("name", list(METHODS))
def test_costs_are_what_torch_counts(name: str) -> None:
    method = build(name, eager_base("llama"))
    with FlopCounterMode(display=False) as taking:
        state = method.take_in(CONTEXT)
    costs = method.costs(state, [])
    assert costs.answering_flops == 0
    training = costs.training_flops or 0.0
    assert (costs.training_flops is None) == (name == "generative-adapter")  # its file doesn't tell
    assert training + costs.contextualizing_flops == pytest.approx(taking.get_total_flops(), rel=0.02)
    assert (training > 0) == name.startswith(("sft", "cpt"))
    spends_nothing = name in ("closed-book", "no-adapter", "full-context") or name.startswith("sft")
    assert (costs.contextualizing_flops > 0) == (not spends_nothing)
    for kind, query in QUERIES.items():
        with FlopCounterMode(display=False) as answering:
            answers = method.answer(state, [query], WORDING, NEW)
        assert answers[0].num_new_tokens > (1 if kind == "generated" else 20)
        expected = pytest.approx(answering.get_total_flops(), rel=0.02)
        assert method.costs(state, answers).answering_flops == expected, kind


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "phi3", "gpt_neox"])
def test_lora_of_other_families(family: str) -> None:
    """GPT-NeoX's feed-forward reads the block's input too, which the formula doesn't see: of two blocks, in one."""
    taking, _, _, costs = counted(build("k-shot-lora", eager_base(family)), [])
    assert costs.contextualizing_flops == pytest.approx(taking, rel=0.04 if family == "gpt_neox" else 0.02)


@pytest.mark.parametrize(
    ("settings", "uncounted"),
    [
        ({"normalization": "frobenius"}, 3 * 7**2),  # no matrix product
        ({"normalization": "svd", "rank": 5}, 20 * 7**3),  # torch counts no decomposition
        ({"normalization": "ridge"}, 2 * 7**3),  # nor an inverse
        ({"value_layer": 0, "write_gate": True, "targets": ("feed_forward_down",)}, 0),
        ({"key_windows": (3, -2), "window_gates": True, "chunk_tokens": 500}, 0),
        ({"normalization": "svd", "state_dim": 47, "rank": 3, "subspace_iterations": 2}, None),
    ],
)
def test_generators_of_every_form(settings: dict, uncounted: int | None) -> None:
    method = adapter_method(eager_base("llama"), **settings)
    taking, answering, _, costs = counted(method, [QUERIES["generated"]])
    num_chunks = -(-len(CONTEXT.text) // method.model.checkpoint.config.chunk_tokens)
    assert num_chunks == (1 if settings.get("chunk_tokens") == 500 else 4)
    if uncounted is None:  # triangular solves and the small SVD, of 35 columns
        uncounted = 3 * (2 * 2 + 2) * 47 * 35**2 + 20 * 35**3
    taking += uncounted * num_chunks * len(method.model.generator.targets)
    assert costs.contextualizing_flops == pytest.approx(taking, rel=0.02)
    assert costs.answering_flops == pytest.approx(answering, rel=0.02)


@pytest.mark.parametrize("reading_rank", [0, 3])
def test_generators_with_an_encoder(reading_rank: int) -> None:
    """Their chunks are read side by side, so that torch counts their padding too, 9 in 240 tokens."""
    base = eager_base("llama")
    config = tiny_encoder_config({"reading_rank": reading_rank}, chunk_tokens=40)
    method = GenerativeAdapterMethod(GenerativeAdapter(base, tiny_checkpoint(base, config, prompt=PromptConfig())))
    taking, answering, _, costs = counted(method, [QUERIES["generated"]])
    assert method.take_in(CONTEXT).memory.num_chunks == 6
    taking += 2 * 11**3 + 2 * 6 * 4 * 40**2 * 15  # torch counts no inverse, and not the encoder's fused attention
    assert 0.95 * taking < costs.contextualizing_flops < taking
    assert costs.answering_flops == pytest.approx(answering, rel=0.02)


def test_generators_with_units() -> None:
    """As with sums, which are made with the adapter, and keys are whitened for every block."""
    base = eager_base("llama")
    config = tiny_encoder_config({"unit_layers": (0, 1)}, chunk_tokens=40)
    generator = build_generator(config, base)
    inner = base.model.config.intermediate_size
    assert [generator.units_taken(tokens) for tokens in (0, inner, inner + 2, 999)] == [
        0,
        2 * inner,
        inner + 2,
        2 * inner,
    ]
    method = GenerativeAdapterMethod(GenerativeAdapter(base, tiny_checkpoint(base, config, prompt=PromptConfig())))
    taking, answering, _, costs = counted(method, [QUERIES["generated"]])
    taking += 2 * 11**3 + 2 * 6 * 4 * 40**2 * 15
    assert 0.95 * taking < costs.contextualizing_flops < 1.02 * taking
    assert costs.answering_flops == pytest.approx(answering, rel=0.02)


def test_generators_with_surroundings() -> None:
    """The fixed part of keys is no product with the encoder's width, but sums over near words."""
    base = eager_base("llama")
    encoder = {"unit_layers": (0, 1), "surroundings_dim": 19, "reading_rank": 0}
    config = tiny_encoder_config(encoder, chunk_tokens=40, layers=(), state_dim=30)
    method = GenerativeAdapterMethod(GenerativeAdapter(base, tiny_checkpoint(base, config, prompt=PromptConfig())))
    taking, answering, _, costs = counted(method, [QUERIES["generated"]])
    taking += 2 * 11**3 + 2 * 6 * 4 * 40**2 * 15
    assert 0.95 * taking < costs.contextualizing_flops < 1.02 * taking
    assert costs.answering_flops == pytest.approx(answering, rel=0.02)


def test_padding_of_answers_is_not_counted() -> None:
    base = eager_base("llama")
    one_by_one = ClosedBook(base, batching=Batching(max_rows=1))
    short, long = Query("Who?", ("Ada", "Bo")), Query("Who keeps bees where it rains?", ("Ada", "nobody at all"))
    _, alone, answers, costs = counted(one_by_one, [short, long])
    _, together, _, same = counted(ClosedBook(base), [short, long])
    assert same == costs and together > 1.2 * 2 * costs.answering_flops
    padding = 1 + 10  # options are padded to the longest: " Bo" to " Ada", " Ada" to " nobody at all"
    assert [answer.num_new_tokens for answer in answers] == [len(" Ada Bo"), len(" Ada nobody at all")]
    per_token = (alone - 2 * costs.answering_flops) / padding
    sizes = one_by_one._sizes
    weights = 2 * sum(block.weights for block in sizes.blocks) + 2 * sizes.hidden_size * sizes.vocab_size
    assert weights < per_token < 1.5 * weights


def test_padding_of_fine_tuning_is_counted() -> None:
    base = eager_base("llama")
    together = dataclasses.replace(FEW, batch_size=3)
    pairs = (("Who?", "Ada"), ("Who keeps bees where it rains?", "Bo"), ("Who naps at noon?", "nobody at all"))
    context = dataclasses.replace(CONTEXT, examples=pairs)
    found = []
    for settings in (FEW, together):
        method = KShotFineTuning(FullWeights(base), WORDING, settings=settings)
        with FlopCounterMode(display=False) as counter:
            state = method.take_in(context)
        found.append(method.costs(state, []).contextualizing_flops)
        assert found[-1] == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert found[1] > 1.1 * found[0]


def test_stored_numbers_and_bytes() -> None:
    base = eager_base("llama")
    base.model.to(torch.bfloat16)
    method = build("k-shot-full", base)
    costs = method.costs(method.take_in(CONTEXT), [])
    assert costs.stored_floats == sum(parameter.numel() for parameter in base.model.parameters())
    assert costs.stored_bytes == 2 * costs.stored_floats
