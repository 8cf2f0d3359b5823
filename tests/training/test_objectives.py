"""Losses of a pass against every chunk and question read alone; gradients of a step in parts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.training.batches import OBJECTIVES, ContextItem, Segment, assemble, split
from generative_adapter.training.objectives import GeneratorPass, count_labels, token_losses, weighted_loss

WEIGHTS = {"answer": 1.0, "reconstruction": 0.3, "completion": 0.7}


def random_items(seed: int, start: tuple[int, ...], num_items: int = 5) -> list[ContextItem]:
    """Contexts of 1 to 4 chunks with questions at any depth."""
    rng = random.Random(seed)

    def tokens(fewest: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, 600) for _ in range(rng.randint(fewest, most)))

    items = []
    for number in range(num_items):
        chunks = tuple(tokens(2, 9) for _ in range(1 + number % 4))
        segments = [
            Segment((*start, *chunk), max(1, len(start)), level, "reconstruction")
            for level, chunk in enumerate(chunks, 1)
        ]
        for _ in range(3):
            asked = tokens(2, 6)
            segments.append(Segment(asked + tokens(1, 4), len(asked), rng.randint(1, len(chunks)), "answer"))
        items.append(ContextItem(chunks, tuple(segments), completion=number % 3 != 0))
    return items


@torch.no_grad()
def slow_losses(
    base: BaseModel, generator: AdapterGenerator, items: Sequence[ContextItem], start: tuple[int, ...]
) -> list[list[tuple[str, list[float]]]]:
    """For each context (objective, losses of its labels) of every segment: one forward pass each, one row a pass."""
    found = []
    for item in items:
        states: dict[str, Tensor] = {}
        adapters: list[LowRankAdapter | None] = [None]  # by number of chunks read
        for chunk in item.chunks:
            ids = torch.tensor([[*start, *chunk]])
            with inject(base.model, [adapters[-1]]):
                hidden = capture_block_inputs(base.model, generator.layers, ids)
            written = generator.write({layer: values[:, len(start) :] for layer, values in hidden.items()})
            states = {name: states.get(name, 0) + increment[0] for name, increment in written.items()}
            adapters.append(generator.adapter(states))
        segments = [*item.segments]
        if item.completion:
            segments += [Segment((*start, *c), 1, t, "completion") for t, c in enumerate(item.chunks) if t]
        values = []
        for segment in segments:
            with inject(base.model, [adapters[segment.level]]):
                logits = base.model(input_ids=torch.tensor([segment.ids])).logits[0].double()
            losses = -logits.log_softmax(-1)
            labels = segment.ids[segment.num_prompt :]
            here = range(segment.num_prompt - 1, len(segment.ids) - 1)
            values.append((segment.objective, [losses[at, x].item() for at, x in zip(here, labels, strict=True)]))
        found.append(values)
    return found


@pytest.mark.parametrize("attention", ["eager", "grouped", "sdpa", None])
@pytest.mark.parametrize(
    ("start", "settings"),
    [
        ((), {}),
        ((1,), {"value_shift": 1}),
        ((1,), {"normalization": "frobenius", "targets": ("feed_forward_down",), "layers": (0, 2)}),
        ((), {"normalization": "svd", "rank": 3, "value_shift": 2, "hidden_norm": False}),
        ((), {"targets": ("attention_output", "v_proj", "feed_forward_down")}),
    ],
    ids=["plain", "shift", "frobenius", "svd", "three targets"],
)
def test_one_pass_equals_reading_chunk_by_chunk(
    base: BaseModel,
    random_generator: Callable[..., AdapterGenerator],
    start: tuple[int, ...],
    settings: dict[str, Any],
    attention: str | None,
) -> None:
    generator = random_generator(**settings)
    items = random_items(1, start)
    batch = assemble(items, pad_id=0, start_ids=start, row_tokens=24)
    result = token_losses(base, generator, batch, attention)
    fast: list[list[tuple[str, list[float]]]] = [[] for _ in items]
    for number in range(int(batch.segment_index.max()) + 1):
        here = batch.segment_index == number
        losses = result.losses[here].tolist()
        fast[int(batch.item_index[here][0])].append((OBJECTIVES[int(batch.objectives[here][0])], losses))
    slow = slow_losses(base, generator, items, start)
    for given, expected in zip(fast, slow, strict=True):
        assert len(given) == len(expected)
        for (name, losses), (slow_name, slow_values) in zip(sorted(given), sorted(expected), strict=True):
            assert name == slow_name
            assert losses == pytest.approx(slow_values, rel=2e-4, abs=2e-4)
    plain = token_losses(base, random_generator(**{**settings, "scale": 1e-9}), batch).losses
    assert (plain - result.losses).abs().mean() > 0.1  # the adapters matter
    implementation = base.model.config._attn_implementation
    assert implementation == "sdpa"


def test_correct_marks_the_likeliest_token(base: BaseModel, random_generator: Callable[..., AdapterGenerator]) -> None:
    """A label that the model puts first is found by asking it, then told apart from its neighbour."""
    generator = random_generator()
    context, asked = (11, 12, 13, 14), (21, 22, 23)
    with torch.no_grad():
        hidden = capture_block_inputs(base.model, generator.layers, torch.tensor([context]))
        adapter = generator.adapter({name: s[0] for name, s in generator.write(hidden).items()})
        with inject(base.model, adapter):
            best = int(base.model(input_ids=torch.tensor([asked])).logits[0, -1].argmax())
    segments = (Segment((*asked, best), 3, 1, "answer"), Segment((*asked, best + 1), 3, 1, "answer"))
    batch = assemble([ContextItem((context,), segments)], pad_id=0, start_ids=(), row_tokens=16)
    assert token_losses(base, generator, batch).correct is None  # only where there are no gradients
    with torch.no_grad():
        result = token_losses(base, generator, batch)
    assert result.correct is not None
    assert result.correct.tolist() == [label == best for label in batch.labels.tolist()]
    assert sorted(result.correct.tolist()) == [False, True]
    assert result.losses[result.correct] < result.losses[~result.correct]


def inputs_of_targets(
    base: BaseModel, generator: AdapterGenerator, adapter: LowRankAdapter, ids: Sequence[int]
) -> dict[str, Tensor]:
    """What each target linear is given for each token, `[tokens, d_in]`."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, args: inputs.update({name: args[0][0]})

    handles = [base.model.get_submodule(t.name).register_forward_pre_hook(keep(t.name)) for t in generator.targets]
    with inject(base.model, adapter), torch.no_grad():
        base.model(input_ids=torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return inputs


def test_lookup_losses_are_those_of_every_read_alone(
    base: BaseModel, random_generator: Callable[..., AdapterGenerator]
) -> None:
    """Two contexts of one chunk in one pass, against the reads of each question under its adapter, target by target."""
    generator = random_generator(normalization="ridge", value_shift=1, key_windows=(3, -2))
    contexts = [(11, 12, 13, 14, 15, 16), (31, 32, 33)]
    found = [(4, 2, -1), (0, 2)]  # the first token of a context is no key's value: not looked up
    questions = [(21, 22, 23, 15, 13, 1), (24, 25, 31, 33)]
    items = [
        ContextItem((chunk,), (Segment(ids, len(ids) - len(at), 1, "answer", at),))
        for chunk, ids, at in zip(contexts, questions, found, strict=True)
    ]
    result = token_losses(base, generator, assemble(items, pad_id=0, start_ids=(), row_tokens=16), lookup=True)
    expected: list[float] = []
    correct: list[float] = []
    for chunk, ids, at in zip(contexts, questions, found, strict=True):
        hidden = capture_block_inputs(base.model, generator.layers, torch.tensor([chunk]))
        states = {name: state[0] for name, state in generator.write(hidden).items()}
        inputs = inputs_of_targets(base, generator, generator.adapter(states), ids)
        for number, token in enumerate(at):
            if token < 1:
                continue
            losses, hits = [], []
            for target in generator.targets:
                each = generator[target.name]
                keys, values = (part[0] for part in each.keys_and_values(hidden[target.layer]))
                query = each.query_proj @ inputs[target.name][len(ids) - len(at) - 1 + number]
                gram = keys.T @ keys
                gram = gram + each.ridge_strength * torch.eye(len(gram))
                weights = keys @ torch.linalg.solve(gram, query)
                torch.testing.assert_close(values.T @ weights, each.normalize(states[target.name]) @ query)
                losses.append(-(10 * weights).log_softmax(0)[token - 1].item())
                hits.append(float(weights.argmax() == token - 1))
            expected.append(sum(losses) / len(losses))
            correct.append(sum(hits) / len(hits))
    assert result.lookup_losses is not None and result.lookup_correct is not None
    assert sorted(result.lookup_losses.tolist()) == pytest.approx(sorted(expected), rel=1e-3)
    assert sorted(result.lookup_correct.tolist()) == pytest.approx(sorted(correct))
    assert len(expected) == 3
    result.lookup_losses.sum().backward()
    for target in generator.targets:
        gradient = generator[target.name].key_proj.grad
        assert gradient is not None and gradient.abs().max() > 0


def test_nothing_is_looked_up_where_it_is_not_known(
    base: BaseModel, random_generator: Callable[..., AdapterGenerator]
) -> None:
    batch = assemble(random_items(1, ()), pad_id=0, start_ids=(), row_tokens=24)
    assert token_losses(base, random_generator(normalization="ridge"), batch, lookup=True).lookup_losses is None


@pytest.mark.parametrize("attention", ["grouped", None])
@pytest.mark.parametrize("lookup", [False, True])
def test_checkpointing_changes_neither_losses_nor_gradients(
    base: BaseModel, random_generator: Callable[..., AdapterGenerator], lookup: bool, attention: str | None
) -> None:
    generator = random_generator(normalization="ridge", value_shift=1)
    items = random_items(3, ())
    if lookup:
        items = [ContextItem(((11, 12, 13),), (Segment((21, 22, 12, 13), 2, 1, "answer", (1, 2)),))]
    batch = assemble(items, pad_id=0, start_ids=(), row_tokens=24)
    found = []
    for checkpointing in (False, True):
        result = GeneratorPass(base, generator, attention, lookup, checkpointing=checkpointing)(batch)
        loss = result.losses.mean() + (0.0 if result.lookup_losses is None else result.lookup_losses.sum())
        assert lookup == (result.lookup_losses is not None)
        generator.zero_grad()
        loss.backward()
        found.append((result.losses.detach(), {name: p.grad for name, p in generator.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0])
    for name, gradient in found[0][1].items():
        assert gradient is not None and gradient.norm() > 0, name
        assert (found[1][1][name] - gradient).norm() < 1e-5 * gradient.norm(), name


def test_weighted_loss_by_hand() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    kinds = torch.tensor([0, 0, 1, 2])
    counts = {"answer": 4, "reconstruction": 2, "completion": 1}  # two answers and a reconstruction are in other passes
    assert weighted_loss(losses, kinds, counts, WEIGHTS).item() == pytest.approx(1.0 * 3 / 4 + 0.3 * 4 / 2 + 0.7 * 8)
    nothing = dict.fromkeys(OBJECTIVES, 0)
    assert weighted_loss(losses[:0], kinds[:0], nothing, WEIGHTS).item() == 0


def gradients(
    base: BaseModel, generator: AdapterGenerator, items: Sequence[ContextItem], most: int
) -> tuple[int, float, dict[str, Tensor]]:
    """Number of passes, loss and gradients of one step."""
    generator.zero_grad()
    batches = [assemble(part, pad_id=0, start_ids=(), row_tokens=24) for part in split(items, most)]
    counts = count_labels(batches)
    assert sum(counts.values()) == sum(len(batch.labels) for batch in batches)
    total = 0.0
    for batch in batches:
        part = weighted_loss(token_losses(base, generator, batch).losses, batch.objectives, counts, WEIGHTS)
        part.backward()
        total += part.item()
    return len(batches), total, {name: p.grad.clone() for name, p in generator.named_parameters()}  # type: ignore


@pytest.mark.parametrize("settings", [{}, {"normalization": "svd", "rank": 4}], ids=["newton_schulz", "svd"])
def test_many_small_passes_have_the_gradient_of_one(
    base: BaseModel, random_generator: Callable[..., AdapterGenerator], settings: dict[str, Any]
) -> None:
    generator = random_generator(**settings)
    items = random_items(2, (), 8)
    one, loss, whole = gradients(base, generator, items, 100_000)
    many, summed, parts = gradients(base, generator, items, 60)
    assert one == 1 and many >= 4
    assert summed == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        assert (parts[name] - gradient).norm() <= 2e-3 * gradient.norm(), name


def test_gradient_of_the_pass_is_that_of_its_loss(
    base: BaseModel, random_generator: Callable[..., AdapterGenerator]
) -> None:
    """Directional finite differences over several chunks, so that the gradient through the memories counts too."""
    generator = random_generator(normalization="frobenius")  # the others bend too sharply for a finite step
    items = [item for item in random_items(4, (), 8) if len(item.chunks) > 1]

    def loss() -> float:
        with torch.no_grad():
            batch = assemble(items, pad_id=0, start_ids=(), row_tokens=24)
            values = token_losses(base, generator, batch)
            return weighted_loss(values.losses.double(), batch.objectives, count_labels([batch]), WEIGHTS).item()

    _, _, found = gradients(base, generator, items, 100_000)
    for kind in ("key_proj", "value_proj", "query_proj", "output_proj", "norm_weight"):
        names = [name for name in found if name.endswith(kind)]
        length = sum(float(found[name].square().sum()) for name in names) ** 0.5
        step = 0.01
        sides = []
        for sign in (1, -1):  # along the gradient itself, whose directional derivative is its length
            with torch.no_grad():
                for name in names:
                    generator.get_parameter(name).add_(found[name], alpha=sign * step / length)
                sides.append(loss())
                for name in names:
                    generator.get_parameter(name).sub_(found[name], alpha=sign * step / length)
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(length, rel=0.05), kind
