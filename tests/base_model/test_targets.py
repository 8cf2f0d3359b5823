"""Finding Transformer blocks and target linears by role and by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from generative_adapter.base_model.targets import (
    all_linears,
    find_blocks,
    find_targets,
    is_transposed,
    linear_shape,
)
from generative_adapter.config import TargetShape
from generative_adapter.errors import ConfigError, UnsupportedArchitectureError
from tiny_models import FAMILIES, HEAD_DIM, HEADS, HIDDEN, INNER, LAYERS, tiny_model


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return tiny_model("gpt2")


def test_blocks_of_every_family(family, family_base):
    path, blocks = find_blocks(family_base.model)
    assert path == FAMILIES[family].blocks
    assert blocks is family_base.model.get_submodule(path)
    assert len(blocks) == LAYERS


def test_both_roles_of_every_family(family, family_base):
    expected = FAMILIES[family]
    found = find_targets(family_base.model, ("attention_output", "feed_forward_down"))
    assert found == tuple(
        TargetShape(f"{expected.blocks}.{layer}.{name}", layer, *shape)
        for layer in range(LAYERS)
        for name, shape in (expected.attention_output, expected.feed_forward_down)
    )


def test_names_of_every_family(family, family_base):
    expected = FAMILIES[family]
    end, name, shape = expected.by_name
    by_end = find_targets(family_base.model, (end,))
    assert by_end == find_targets(family_base.model, (name,))
    assert by_end == tuple(TargetShape(f"{expected.blocks}.{layer}.{name}", layer, *shape) for layer in range(LAYERS))


def test_shapes_are_those_of_the_weights(family, family_base):
    end, _, _ = FAMILIES[family].by_name
    for target in find_targets(family_base.model, ("attention_output", "feed_forward_down", end)):
        module = family_base.model.get_submodule(target.name)
        weight = module.weight.mT if is_transposed(module) else module.weight
        assert tuple(weight.shape) == (target.out_features, target.in_features)
        assert linear_shape(module) == (target.in_features, target.out_features)
    assert is_transposed(module) == (family == "gpt2")


def test_shapes_do_not_need_the_weights(family, family_base):
    model = copy.deepcopy(family_base.model)
    expected = find_targets(model, ("attention_output", "feed_forward_down"))
    for parameter in model.parameters():  # as DeepSpeed leaves them while a module does not run
        parameter.data = torch.empty(0)
    assert find_targets(model, ("attention_output", "feed_forward_down")) == expected


def test_targets_come_block_by_block_in_the_order_given(llama):
    found = find_targets(llama, ("feed_forward_down", "q_proj"))
    assert [target.name for target in found] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert found[1] == TargetShape("model.layers.0.self_attn.q_proj", 0, HIDDEN, HEADS * HEAD_DIM)


@pytest.mark.parametrize(("layers", "expected"), [((1,), [1]), ((-1,), [1]), ((1, 0), [0, 1]), ((0, -2, 0), [0])])
def test_layers_are_chosen_in_ascending_order_once(llama, layers, expected):
    assert [target.layer for target in find_targets(llama, ("o_proj",), layers)] == expected


def test_all_linears_of_some_blocks(family, family_base):
    model = family_base.model
    path, blocks = find_blocks(model)
    found = all_linears(model, (1,))
    assert [target.layer for target in found] == [1] * len(found)
    expected = {f"{path}.1.{name}" for name, module in blocks[1].named_modules() if linear_shape(module)}
    assert {target.name for target in found} == expected and len(found) == len(expected)
    for target in found:
        assert (target.in_features, target.out_features) == linear_shape(model.get_submodule(target.name))
    assert set(find_targets(model, ("attention_output", "feed_forward_down"), (1,))) < set(found)
    assert all_linears(model, (0, 1))[len(found) :] == found and all_linears(model, ()) == ()


@pytest.mark.parametrize("layer", [2, -3])
def test_layer_out_of_range(llama, layer):
    with pytest.raises(ConfigError, match=rf"block {layer} is out of range: the base model has 2 blocks"):
        find_targets(llama, ("o_proj",), (0, layer))


def test_layer_that_two_targets_name(llama):
    with pytest.raises(ConfigError, match=r"name the same layer model\.layers\.0\.self_attn\.o_proj"):
        find_targets(llama, ("attention_output", "o_proj"))


def test_ambiguous_name_lists_the_matches(gpt2):
    with pytest.raises(UnsupportedArchitectureError, match=r"more than one linear matches") as caught:
        find_targets(gpt2, ("c_proj",))
    for part in ("'c_proj'", "transformer.h.0", "GPT2LMHeadModel", "attn.c_proj", "mlp.c_proj"):
        assert part in str(caught.value)


def test_unknown_name_tells_what_there_is(llama):
    with pytest.raises(UnsupportedArchitectureError) as caught:
        find_targets(llama, ("o_project",))
    for part in (
        "'o_project'",
        "model.layers.0",
        "LlamaForCausalLM",
        "no such linear",
        "self_attn.o_proj",
        "feed_forward_down",
    ):
        assert part in str(caught.value)


def test_end_of_a_name_is_whole_words_only(llama):
    with pytest.raises(UnsupportedArchitectureError, match="no such linear"):
        find_targets(llama, ("proj",))


class Block(nn.Module):
    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.down = nn.Linear(INNER, HIDDEN)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(HIDDEN, HIDDEN)) for _ in range(experts))


class Model(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


def test_unsupported_role_names_what_was_looked_for():
    with pytest.raises(UnsupportedArchitectureError) as caught:
        find_targets(Model(Block(), Block()), ("attention_output",))
    message = str(caught.value)
    for part in ("attention_output", "self_attn.o_proj", "attn.c_proj", "attention.dense", "the block has mix, down"):
        assert part in message


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 5),
        Model(),
        Model(nn.LayerNorm(3), nn.LayerNorm(3)),
        Model(Block(), nn.Linear(3, 5)),
        nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)),
    ],
    ids=["no list", "empty list", "no linears", "unequal modules", "sequential"],
)
def test_model_without_blocks_names_what_was_looked_for(model):
    with pytest.raises(UnsupportedArchitectureError, match=r"looked for an nn\.ModuleList") as caught:
        find_targets(model, ("attention_output",))
    assert type(model).__name__ in str(caught.value)


def test_experts_of_a_block_are_no_blocks():
    path, blocks = find_blocks(Model(Block(experts=7), Block(experts=7)))
    assert path == "blocks"
    assert len(blocks) == 2


def test_role_found_at_the_end_of_a_longer_name():
    block = nn.ModuleDict({"inner": nn.ModuleDict({"self_attn": nn.ModuleDict({"o_proj": nn.Linear(INNER, HIDDEN)})})})
    assert find_targets(Model(block), ("attention_output",)) == (
        TargetShape("blocks.0.inner.self_attn.o_proj", 0, INNER, HIDDEN),
    )
