"""A pass with gradient checkpointing equals one without, keeps less, and leaves no trace in the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative_adapter.base_model.checkpointing import recompute_blocks
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import attention_kernel, prefix_logits, read_first_chunks
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.target_generator import TargetGenerator
from slow_reading import make_layout
from tiny_models import BEGIN, randomize, tiny_base, tiny_config


def random_generator(base: BaseModel, **settings: object) -> AdapterGenerator:
    return randomize(build_generator(tiny_config(**settings), base))


def loss_of(base: BaseModel, generator: AdapterGenerator, checkpointing: bool, **layout: Any) -> Tensor:
    """A random weighting of the logits of contexts of one, two and three chunks."""
    made = make_layout(**layout)
    skipped = made.rows.num_start_tokens
    first = [read_first_chunks(base.model, generator.layers, *group, skipped) for group in made.first]
    logits, _ = prefix_logits(base.model, generator, first, made.rows, made.membership, checkpointing=checkpointing)
    return (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))).sum()


def gradients(loss: Tensor, generator: AdapterGenerator) -> dict[str, Tensor]:
    names, parameters = zip(*generator.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def traces(model: nn.Module) -> list[str]:
    """Modules with a hook, or a `forward` that isn't their class's."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    ]


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Counts calls of a method from now on, in the one number of the list."""
    calls, original = [0], getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize(
    ("family_name", "settings"),
    [
        *[(name, {"normalization": "newton_schulz"}) for name in ("llama", "gemma2", "gpt2", "gpt_neox", "qwen2")],
        *[("llama", {"normalization": name}) for name in ("svd", "frobenius", "ridge")],
        ("qwen2", {"normalization": "ridge", "key_windows": (3, -2), "window_gates": True, "write_gate": True}),
        ("gpt2", {"normalization": "ridge", "value_layer": 0, "value_shift": 1}),
        ("llama", {"layers": (1,), "value_layer": 0, "normalization": "newton_schulz"}),
        ("llama", {"targets": ("attention_output", "v_proj", "gate_proj"), "normalization": "newton_schulz"}),
    ],
)
def test_losses_and_gradients_are_those_without(family_name: str, settings: dict[str, Any]) -> None:
    base = tiny_base(family_name)
    generator = random_generator(base, **settings)
    plain = loss_of(base, generator, False, start=(BEGIN,))
    expected = gradients(plain, generator)
    loss = loss_of(base, generator, True, start=(BEGIN,))
    assert traces(base.model) == []
    actual = gradients(loss, generator)
    assert traces(base.model) == []
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for name, wanted in expected.items():
        assert wanted.norm() > 0, name
        assert (actual[name] - wanted).norm() < 1e-5 * wanted.norm(), name


@pytest.mark.parametrize("attention", ["eager", "grouped", "sdpa"])
def test_blocks_run_again_under_the_attention_kernel_of_the_pass(
    monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    base = tiny_base("llama")
    generator = random_generator(base)
    kernels: list[str] = []
    attention_layer: Any = find_blocks(base.model)[1][0].self_attn
    own = attention_layer.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        kernels.append(attention_layer.config._attn_implementation)
        return own(*args, **kwargs)

    monkeypatch.setattr(attention_layer, "forward", noted)
    with attention_kernel(base.model, attention):
        loss = loss_of(base, generator, True)
    assert base.model.config._attn_implementation == "sdpa"
    kernels.clear()
    loss.backward()
    assert kernels == [attention]
    assert base.model.config._attn_implementation == "sdpa"


def test_blocks_run_twice_and_memories_are_written_and_normalised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    generator = random_generator(base)
    inner = [count_calls(monkeypatch, block.mlp, "forward") for block in find_blocks(base.model)[1]]
    written = count_calls(monkeypatch, TargetGenerator, "write")
    normalized = count_calls(monkeypatch, TargetGenerator, "normalize")
    loss = loss_of(base, generator, True)
    forward = [calls[0] for calls in inner]
    loss.backward()
    assert [calls[0] - before for calls, before in zip(inner, forward, strict=True)] == [1, 1]
    assert written[0] == normalized[0] == len(generator.targets)


def test_a_graph_that_is_kept_can_be_gone_through_twice(tiny_llama_base: BaseModel) -> None:
    generator = random_generator(tiny_llama_base)
    loss = loss_of(tiny_llama_base, generator, True)
    parameters = list(generator.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def saved_bytes(make: Callable[[], Tensor], frozen: nn.Module) -> int:
    """Bytes that the graph of a loss keeps for its backward, the model's own weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in frozen.parameters()}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held.append(tensor.detach())  # so that no address is used twice
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make()
    return sum(kept.values())


@pytest.mark.parametrize("family_name", ["llama", "gpt2", "gpt_neox"])
def test_less_is_kept_for_the_backward(family_name: str) -> None:
    base = tiny_base(family_name)
    generator = random_generator(base, normalization="frobenius", targets=("attention_output",))
    lengths = ((11,), (60, 50), (55, 60))
    sizes = {
        checkpointing: saved_bytes(lambda on=checkpointing: loss_of(base, generator, on, lengths=lengths), base.model)
        for checkpointing in (False, True)
    }
    assert sizes[True] < sizes[False] / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_stays_behind_when_the_forward_raises(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    generator = random_generator(base)

    def fail(*_args: Any) -> Tensor:
        raise RuntimeError("stop")

    monkeypatch.setattr(TargetGenerator, "read", fail)
    with pytest.raises(RuntimeError, match="stop"):
        loss_of(base, generator, checkpointing)
    assert traces(base.model) == []


def test_nothing_stays_behind_when_the_backward_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    generator = random_generator(base)
    ids = torch.arange(10, 20).unsqueeze(0)
    before = base.model(input_ids=ids).logits
    with attention_kernel(base.model, "eager"):
        loss = loss_of(base, generator, True)

    def fail(*_args: Any) -> Tensor:
        raise RuntimeError("stop")

    monkeypatch.setattr(TargetGenerator, "read", fail)
    with pytest.raises(RuntimeError, match="stop"):
        loss.backward()
    assert traces(base.model) == []
    assert base.model.config._attn_implementation == "sdpa"
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_a_forward_that_someone_else_put_on_a_block_comes_back() -> None:
    """Accelerate's offloading does so."""
    base = tiny_base("llama")
    block = find_blocks(base.model)[1][0]
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    wrapper = block.__dict__["forward"]
    with recompute_blocks(base.model, lambda _layer: nullcontext()):
        assert block.__dict__["forward"] is not wrapper
    assert block.__dict__["forward"] is wrapper


def test_without_gradients_nothing_is_recomputed(tiny_llama_base: BaseModel) -> None:
    generator = random_generator(tiny_llama_base)
    with torch.no_grad():
        assert torch.equal(loss_of(tiny_llama_base, generator, True), loss_of(tiny_llama_base, generator, False))
