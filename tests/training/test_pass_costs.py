"""Operations of a training pass against torch's own counter, on tiny models of several families."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generative_adapter.base_model.costs import base_sizes
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.config import GeneratorConfig
from generative_adapter.generator.normalization import normalize, ridge
from generative_adapter.training.batches import Batch, ContextItem, Segment, assemble
from generative_adapter.training.objectives import token_losses
from generative_adapter.training.pass_costs import PassLayout, normalization_flops, pass_bytes, pass_flops
from tiny_models import LAYERS, TURN_END, randomize, tiny_base, tiny_config

CHUNK, NUM_CHUNKS, CONTEXTS = 59, 3, 2  # chunks long enough for products of tokens to matter


def batch(num_chunks: int, *, completion: bool) -> Batch:
    """Contexts of equal chunks: reconstructions, and completions where asked for."""
    random = torch.Generator().manual_seed(1)
    items = []
    for _ in range(CONTEXTS):
        chunks = tuple(
            tuple(torch.randint(TURN_END + 1, 200, (CHUNK,), generator=random).tolist()) for _ in range(num_chunks)
        )
        segments = tuple(Segment(chunk, 1, level, "reconstruction") for level, chunk in enumerate(chunks, start=1))
        items.append(ContextItem(chunks, segments, completion))
    return assemble(items, pad_id=0, start_ids=(), row_tokens=CHUNK)


def layout(made: Batch, num_chunks: int) -> PassLayout:
    rows = CONTEXTS * (2 * num_chunks - 1)
    return PassLayout(
        first_tokens=CONTEXTS * CHUNK,
        first_row_tokens=CHUNK,
        row_tokens=CHUNK,
        all_row_tokens=rows * CHUNK,
        supervised_tokens=len(made.labels),
        chunk_tokens=CHUNK,
        first_chunks=CONTEXTS,
        later_chunks=CONTEXTS * (num_chunks - 1),
        prefixes=CONTEXTS * num_chunks,
        context_tokens=CONTEXTS * num_chunks * CHUNK,
    )


def counted(family: str, config: GeneratorConfig, made: Batch) -> tuple[int, int]:
    """Operations of forward and backward, as torch counts them."""
    base = tiny_base(family)
    base.model.set_attn_implementation("eager")  # torch doesn't count its fused kernel on a CPU
    generator = randomize(build_generator(config, base))
    with FlopCounterMode(display=False) as forward:
        losses = token_losses(base, generator, made, "eager").losses
    with FlopCounterMode(display=False) as backward:
        losses.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("num_chunks", [1, NUM_CHUNKS])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"normalization": "newton_schulz", "state_dim": 17}),
        ("llama", {"normalization": "newton_schulz", "targets": ("attention_output",), "state_dim": 17}),
        ("llama", {"normalization": "frobenius", "targets": ("feed_forward_down",), "layers": (1,), "state_dim": 17}),
        ("qwen3", {"normalization": "newton_schulz", "targets": ("self_attn.v_proj",), "state_dim": 13}),
        (
            "llama",
            {"normalization": "newton_schulz", "state_dim": 13, "key_windows": (16, -16), "window_gates": True},
        ),
        ("llama", {"normalization": "newton_schulz", "value_layer": 0, "layers": (1,), "write_gate": True}),
        ("gpt2", {"normalization": "newton_schulz", "targets": ("attention_output",), "state_dim": 17}),
    ],
)
def test_flops_are_what_torch_counts(family: str, settings: dict, num_chunks: int) -> None:
    config = tiny_config(**settings)
    made = batch(num_chunks, completion=num_chunks > 1)
    assert made.num_computed_tokens == layout(made, num_chunks).computed_tokens
    base = tiny_base(family)
    generator = build_generator(config, base)
    flops = pass_flops(base_sizes(base.model), config, generator.targets, layout(made, num_chunks))
    forward, backward = counted(family, config, made)
    uncounted = 0
    if config.normalization == "newton_schulz":  # torch doesn't count products in place, two of a step's backward
        uncounted = 2 * 6 * 2 * config.state_dim**3 * len(generator.targets) * CONTEXTS * num_chunks
    if config.normalization == "frobenius":  # no matrix product
        uncounted = flops.normalization
    assert flops.total - uncounted == pytest.approx(forward + backward, rel=0.005)


@pytest.mark.parametrize("normalization", ["svd", "ridge"])
def test_normalization_flops(normalization: str) -> None:
    """The products are torch's count; what it doesn't count of an SVD or an inverse stands in the docstring."""
    width = 23
    config = GeneratorConfig(state_dim=width, rank=width, normalization=normalization)
    forward, backward = normalization_flops(config)
    shape = (2 * width, width) if normalization == "ridge" else (width, width)
    state = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        if normalization == "ridge":
            result = ridge(state, torch.tensor(50.0))
        else:
            result = normalize(state, normalization, width)
        result.sum().backward()
    uncounted = {"svd": 20, "ridge": 2}[normalization] * width**3
    assert forward + backward == pytest.approx(counter.get_total_flops() + uncounted, rel=1e-6)


def test_subspace_iteration_flops() -> None:
    width, rank, iterations = 97, 11, 2
    config = GeneratorConfig(state_dim=width, rank=rank, normalization="svd", subspace_iterations=iterations)
    state = torch.randn(1, width, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        result = normalize(state, "svd", rank, subspace_iterations=iterations)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    block = rank + 32
    uncounted = 3 * (2 * iterations + 2) * width * block**2 + 20 * block**3  # triangular solves, the small SVD
    expected = normalization_flops(config)
    assert expected[0] == pytest.approx(forward.get_total_flops() + uncounted, rel=0.02)
    assert expected[1] == pytest.approx(backward.get_total_flops(), rel=0.02)


def test_subspace_iterations_make_the_svd_cheap() -> None:
    def cost(**settings: int) -> float:
        return sum(normalization_flops(GeneratorConfig(normalization="svd", **settings)))

    assert cost(state_dim=1024, rank=128, subspace_iterations=4) < cost(state_dim=1024, rank=128) / 3
    assert cost(state_dim=64, rank=32, subspace_iterations=4) == cost(
        state_dim=64, rank=32
    )  # no narrower than the state


def test_checkpointing_computes_the_blocks_again() -> None:
    config = tiny_config(state_dim=17)
    base = tiny_base("llama")
    targets = build_generator(config, base).targets
    sizes = base_sizes(base.model)
    shape = layout(batch(NUM_CHUNKS, completion=True), NUM_CHUNKS)
    plain = pass_flops(sizes, config, targets, shape)
    again = pass_flops(sizes, config, targets, shape, checkpointing=True)
    blocks = 2 * shape.all_row_tokens * sum(block.weights for block in sizes.blocks)
    attention = 4 * shape.all_row_tokens * CHUNK * sizes.attention_width * LAYERS
    assert again.base_backward - plain.base_backward == blocks + attention
    assert again.base_forward == plain.base_forward
    assert again.generator > plain.generator


@pytest.mark.parametrize("attention", ["eager", "grouped", "sdpa"])
def test_bytes_are_about_what_autograd_saves(attention: str) -> None:
    """Storages that autograd keeps, each once and without weights, lie within 15 % of the estimate."""
    config = tiny_config(normalization="newton_schulz", state_dim=17)
    base = tiny_base("llama")
    generator = randomize(build_generator(config, base))
    made = batch(NUM_CHUNKS, completion=True)
    weights = {p.untyped_storage().data_ptr() for p in (*base.model.parameters(), *generator.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = token_losses(base, generator, made, attention).losses
    shape = layout(made, NUM_CHUNKS)
    found = pass_bytes(
        base_sizes(base.model), config, generator.targets, shape, 4, attention=attention, checkpointing=False
    )
    less = pass_bytes(
        base_sizes(base.model), config, generator.targets, shape, 4, attention=attention, checkpointing=True
    )
    assert losses.requires_grad
    forward = sum(found.values()) - found["logits"] / 2  # the logits' gradient comes with the backward
    assert sum(kept.values()) == pytest.approx(forward, rel=0.15)
    assert less["activations"] < found["activations"]
    logits = len(made.labels) * base.model.config.vocab_size
    assert 4 * logits in kept.values()
    assert found["logits"] == 2 * 4 * logits
