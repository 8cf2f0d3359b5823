"""A closed-form start for a generator: it looks up names and attributes before any step of training.

python scripts/closed_form_start.py RECIPE OUTPUT --contexts 1000

Reads synthetic facts with the plain base model and solves linear problems, one a target layer, for what training finds
late or never (docs/experiments.md): queries at a question's end that match the words of a name (window keys), the
attribute (keys) and, inside an answer, the token before (keys); gates that end averages with the sentence, pick out
names, and write answers only; values from which the token itself can be told, along other directions in every target.
`output_proj` stays zero, so the base model is unchanged until training. Use the file as a recipe's `initial_generator`.

The report tells how often the token with the largest weight is the one that an answer starts after (over all tokens of
the context), and how often the right one of the facts' values is found (among), for names never seen.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from closed_form_reading import BATCH, Batch, batches
from torch import Tensor

from generative_adapter import load_base_model, save_generator
from generative_adapter.base_model.capture import on_block_inputs
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.unit_rms import unit_rms
from generative_adapter.training.recipe import TrainingRecipe, load_recipe

RIDGE_STRENGTH = 30.0  # times the mean eigenvalue of C: near-linear reads, since a query is not quite any key


class Moments:
    """Second moments of contexts and questions, from which everything is solved."""

    def __init__(self, base: BaseModel, generator: AdapterGenerator) -> None:
        self.generator = generator
        self.sums: dict[tuple[str | int, str], Tensor] = {}
        self.counts: dict[tuple[str | int, str], int] = defaultdict(int)
        self.words, self.spectrum = word_coordinates(base)
        if generator.value_layer == 0:  # embeddings: every word is known beforehand
            embedding: Any = base.model.get_input_embeddings()
            self._add_values(0, unit_rms(embedding.weight.detach().float()).cpu(), self.words)

    def add(self, key: str | int, name: str, total: Tensor, count: int) -> None:
        """Adds a sum over `count` samples."""
        known = self.sums.get((key, name))
        self.sums[key, name] = total if known is None else known + total
        self.counts[key, name] += count

    def mean(self, key: str | int, name: str) -> Tensor:
        """Mean over the samples seen."""
        return self.sums[key, name] / max(1, self.counts[key, name])

    def take_in(self, batch: Batch) -> None:
        """Adds one batch."""
        contexts, width = batch.mask.shape
        owners, real = batch.owners, batch.mask.view(-1)
        number = len(owners)
        same = (owners.unsqueeze(1) == owners).float()
        centre = torch.eye(number) - same / same.sum(1, keepdim=True)  # takes away what a context's questions share
        at_name = torch.zeros(number, contexts, width)
        at_value = torch.zeros(number, contexts, width)
        everywhere = torch.zeros(number, contexts, width)
        for row, one in enumerate(batch.asked):
            at_name[row, one.context, one.name] = 0.5 / len(one.name)
            at_name[row, one.context, one.name[-1]] += 0.5
            at_value[row, one.context, one.found[0] - 1] = 1
            everywhere[row, one.context] = batch.mask[one.context] / batch.mask[one.context].sum()
        flat = [x.view(number, -1) for x in (at_name, at_value, everywhere)]
        ways = batch.continuations
        pairs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for layer, hidden in batch.hidden.items():
            tokens = hidden.reshape(contexts * width, -1) * real.unsqueeze(1)
            seen = tokens[real]
            self.add(layer, "hidden", seen.mT @ seen, len(seen))
            with_one = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)
            for name, plane, weight in (
                ("ends", batch.ends, 4.0),
                ("names", batch.names, 1.0),
                ("written", batch.written, 2.0),
            ):
                labels = plane.view(-1)[real].float()
                weighted = with_one * (1 + weight * labels).unsqueeze(1)
                wanted = 5 - 9 * labels if name == "ends" else 6 * labels - 3
                self.add(layer, f"{name} inputs", weighted.mT @ with_one, len(seen))
                self.add(layer, f"{name} logits", weighted.mT @ wanted, len(seen))
            if self.generator.value_layer in (None, layer) and layer > 0:
                weight = 1 + 2 * batch.written.view(-1)[real].float()
                self._add_values(layer, seen, self.words[batch.ids.view(-1)[real]], weight)
            middle = tokens.view(contexts, width, -1).sum(1) / batch.mask.sum(1, keepdim=True)
            before = tokens.view(contexts, width, -1)[ways[:, 2], ways[:, 3]] - middle[ways[:, 2]]
            pairs[layer] = (centre @ (flat[0] @ tokens), (flat[1] - flat[2]) @ tokens, before)
        for target in self.generator.targets:
            of_name, of_attribute, before = pairs[target.layer]
            x = batch.at_ends(target.name)
            inside = batch.inputs[target.name][ways[:, 0], ways[:, 1]]
            anywhere = batch.inputs[target.name][batch.real]
            apart = centre @ x
            for name, left, right in (
                ("end", x, x),
                ("apart", apart, apart),
                ("anywhere", anywhere, anywhere),
                ("inside", inside, inside),
                ("name", apart, of_name),
                ("attribute", x, of_attribute),
                ("continuation", inside, before),
            ):
                self.add(target.name, name, left.mT @ right, len(left))

    def _add_values(self, layer: int, hidden: Tensor, words: Tensor, weight: Tensor | None = None) -> None:
        weighted = hidden if weight is None else hidden * weight.unsqueeze(1)
        self.add(layer, "value inputs", weighted.mT @ hidden, len(hidden))
        self.add(layer, "value words", weighted.mT @ words, len(hidden))
        self.add(layer, "value middle", hidden.sum(0), len(hidden))

    @torch.no_grad()
    def solve(self, shares: tuple[int, int], gains: tuple[float, float, float], sizes: dict[int, float]) -> None:
        """Sets the generator's projections.

        Args:
            shares: directions of the memory for names and for continuations; the attribute has the rest.
            gains: size of name, attribute and continuation keys.
            sizes: typical size of each block's input; queries are scaled with it, so that one learning rate of the
                outputs suits all blocks.
        """
        num_names, num_ways = shares
        num_attributes = self.generator.state_dim - num_names - num_ways
        for target in self.generator.targets:
            each = self.generator[target.name]
            hidden, end, anywhere = (
                self.mean(target.layer, "hidden"),
                self.mean(target.name, "end"),
                self.mean(target.name, "anywhere"),
            )
            inside = self.mean(target.name, "inside")
            white = _inverse_root(hidden, 1.0)
            # without `anywhere` the first token's huge activations would swamp the read
            metrics = {
                "name": 0.2 * end + self.mean(target.name, "apart") + 0.02 * anywhere,
                "attribute": end + 0.02 * anywhere,
                "continuation": inside + 0.3 * end + 0.1 * anywhere,
            }
            keys, queries = [], []
            for (name, metric), size, gain, at in zip(
                metrics.items(), (num_names, num_attributes, num_ways), gains, (end, end, inside), strict=True
            ):
                whiten = _inverse_root(metric, 3.0)
                left, values, right = torch.linalg.svd(
                    whiten @ self.mean(target.name, name) @ white, full_matrices=False
                )
                root = values[:size].sqrt()
                keys.append(gain * _unit((right[:size] * root.unsqueeze(1)) @ white, hidden))
                queries.append(_unit((left[:, :size] * root).mT @ whiten, at))
            each.query_proj.copy_(torch.cat(queries) * sizes[target.layer])
            each.key_proj.copy_(torch.cat([torch.zeros_like(keys[0]), keys[1], keys[2]]))
            for window in each.window_projs:
                window.copy_(torch.cat([keys[0], torch.zeros_like(keys[1]), torch.zeros_like(keys[2])]))
            gates = {name: self._gate(target.layer, name) for name in ("ends", "names", "written")}
            if each.gate_proj is not None and each.gate_bias is not None:
                both = torch.stack([gates["ends"], gates["names"]] * len(each.key_windows))
                each.gate_proj.copy_(both[:, :-1])
                each.gate_bias.copy_(both[:, -1])
            if each.write_proj is not None and each.write_bias is not None:
                each.write_proj.copy_(gates["written"][:-1].unsqueeze(0))
                each.write_bias.copy_(gates["written"][-1:])
            each.value_proj.copy_(self._values(target.layer))

    def _values(self, layer: int) -> Tensor:
        """Random directions of the words' space, the stronger ones more often, without what all tokens share."""
        layer = layer if self.generator.value_layer is None else self.generator.value_layer
        own = torch.linalg.qr(
            torch.randn(len(self.spectrum), self.generator.state_dim) * self.spectrum[:, None] ** 0.25
        )[0]
        words = _regress(self.mean(layer, "value inputs"), self.mean(layer, "value words"), 0.01)
        middle = torch.nn.functional.normalize(self.mean(layer, "value middle"), dim=0)
        values = words @ own
        return (values - middle.unsqueeze(1) * (middle @ values)).mT

    def _gate(self, layer: int, name: str) -> Tensor:
        return _regress(self.mean(layer, f"{name} inputs"), self.mean(layer, f"{name} logits"), 0.003)


def word_coordinates(base: BaseModel) -> tuple[Tensor, Tensor]:
    """Every token's place along the main directions of the output embedding, unit variance each; and their variances.

    Returns:
        `[vocabulary, d_h]` and `[d_h]`.
    """
    head: Any = base.model.get_output_embeddings()
    table: Tensor = head.weight.detach().float().cpu()
    table = table - table.mean(0)
    variances, directions = torch.linalg.eigh((table.mT @ table).double() / len(table))
    variances = variances.float().clamp_min(1e-6 * float(variances[-1]))
    return table @ directions.float() / variances.sqrt(), variances


def _inverse_root(matrix: Tensor, floor: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp_min(0) + floor * values.median()
    return ((vectors / values.sqrt()) @ vectors.mT).float()


def _regress(inputs: Tensor, wanted: Tensor, floor: float) -> Tensor:
    damped = inputs + floor * inputs.diagonal().mean() * torch.eye(len(inputs))
    return torch.linalg.solve(damped.double(), wanted.double()).float()


def _unit(projection: Tensor, moment: Tensor) -> Tensor:
    """Scaled so that the projections of samples with this second moment have a mean square of one."""
    return projection / ((projection @ moment) * projection).sum(-1).mean().sqrt().clamp_min(1e-9)


@torch.no_grad()
def report(generator: AdapterGenerator, found: Iterator[Batch]) -> dict[str, tuple[float, float]]:
    """How well answers are looked up, target by target and by all together: of all tokens, and among the values."""
    hits: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    count = 0
    for batch in found:
        owners, before = batch.owners, batch.before_values
        count += len(owners)
        total = torch.zeros(len(owners), batch.mask.shape[1])
        outside = ~batch.mask[owners]
        other = owners.unsqueeze(1) != owners
        scores: dict[str, Tensor] = {}
        for target in generator.targets:
            each = generator[target.name]
            keys, _ = each.keys_and_values(batch.hidden[target.layer], batch.mask)
            score = torch.einsum("qd,qtd->qt", batch.at_ends(target.name) @ each.query_proj.mT, keys[owners])
            scores[target.name] = score
            total += score / score.std()
        scores["all targets"] = total
        for name, score in scores.items():
            score = score.masked_fill(outside, -torch.inf)
            among = score[:, before].masked_fill(other, -torch.inf)
            hits[name][0] += (score.argmax(1) == before).float().sum().item()
            hits[name][1] += (before[among.argmax(1)] == before).float().sum().item()
    shares = {name: (anywhere / count, among / count) for name, (anywhere, among) in hits.items()}
    for name, (anywhere, among) in shares.items():
        print(f"{name}: of all tokens {anywhere:.0%}, among the values {among:.0%} ({count} questions)")
    return shares


@torch.no_grad()
def set_ridge_strengths(generator: AdapterGenerator, found: list[Batch]) -> None:
    """`RIDGE_STRENGTH` times the mean over contexts of tr(C) / d_r, the mean eigenvalue of the sum of k k^T."""
    for target in generator.targets:
        each = generator[target.name]
        if each.log_ridge is not None:
            keys = (each.keys_and_values(batch.hidden[target.layer], batch.mask)[0] for batch in found)
            sizes = torch.stack([own.square().sum(1).mean() for own in keys])
            each.log_ridge.copy_((RIDGE_STRENGTH * sizes.mean(0)).log())


def fit(base: BaseModel, generator: AdapterGenerator, recipe: TrainingRecipe, num_contexts: int) -> None:
    """Solves a new generator's projections from that many contexts."""
    moments = Moments(base, generator)
    sizes: dict[int, float] = {}
    with on_block_inputs(
        base.model,
        generator.layers,
        lambda layer, h: sizes.update({layer: h.float().square().mean(-1).sqrt().median().item()}),
    ):
        for number, batch in enumerate(
            batches(base, generator, recipe, random.Random(1), num_contexts, "train"), start=1
        ):
            moments.take_in(batch)
            print(f"\r{number * BATCH} contexts", end="", flush=True)
    print()
    width = generator.state_dim
    moments.solve((width * 9 // 16, width * 9 // 32), (12.0, 1.0, 2.0), sizes)
    set_ridge_strengths(generator, list(batches(base, generator, recipe, random.Random(2), 3 * BATCH, "train")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--contexts", type=int, default=1000)
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    base = load_base_model(recipe.base_model, device=recipe.device, dtype=recipe.dtype)
    torch.manual_seed(recipe.seed)
    generator = build_generator(recipe.generator, base)
    fit(base, generator, recipe, given.contexts)
    for split in ("held_out_names", "held_out"):
        print(split)
        report(generator, batches(base, generator, recipe, random.Random(9), 96, split))
    checkpoint = GeneratorCheckpoint(generator, recipe.generator, recipe.prompt, base.name, base.fingerprint)
    save_generator(given.output, checkpoint)


if __name__ == "__main__":
    main()
